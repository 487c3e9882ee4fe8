"""Second entropy: does another network not know what the input shows?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.second_opinion import without_networks
from guard.offline.evidence.kinds.second import SecondLogits, SecondNetwork
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class SecondEntropy:
    """Detector that scores the entropy of another network's answer, the mean of several; it costs no further forward.

    Alone it tells hard inputs from easy ones. Beside `second_opinion` it tells the fusion how much a margin weighs: a
    network that knows what it sees and prefers another class says more than one that does not know.

    Source: none; the second column of prediction inconsistency, arXiv:2506.03765, as this guard's fusion can use it.
    """

    name: ClassVar[str] = "second_entropy"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    networks: tuple[SecondNetwork, ...] = field(default=(), repr=False)  # what was brought or trained

    @property
    def needs(self) -> tuple[SecondLogits, ...]:
        return tuple(map(SecondLogits, self.networks))

    def fit(self, examples: Examples) -> SecondEntropyHead:
        del examples  # nothing is learned; the threshold comes from calibration
        if not self.networks:
            raise without_networks(self.name)
        return SecondEntropyHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> SecondEntropyHead:
        del state
        return SecondEntropyHead(self)


class SecondEntropyHead(Head):
    def __init__(self, detector: SecondEntropy) -> None:
        super().__init__(detector)
        self.asked = detector.needs

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the mean entropy [item] over networks, in nats; larger is less sure."""
        return torch.stack([entropy(evidence[need]) for need in self.asked]).mean(dim=0)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy [item] of the softmax of logits [item, class], in nats."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def second_entropy(taps: Sequence[str], *, networks: Sequence[SecondNetwork] = ()) -> Detector:
    del taps
    return SecondEntropy(tuple(networks))
