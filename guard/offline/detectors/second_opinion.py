"""Second opinion: does another network stand behind the label that the model names?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.answers import named_of
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.second import SecondLogits, SecondNetwork
from guard.offline.evidence.needs import Evidence

TAIL_SHARE = 0.1  # of the clean items: those by which a network's margins are scaled
MIN_SCALE_LOGIT = 1e-3  # keeps a network that answers everything alike from being divided by zero


@dataclass(frozen=True)
class SecondOpinion:
    """Detector that scores by how much another network prefers some other class to the label that the model names.

    The margin of each network is the largest logit of another class minus the label's own. It is measured from where
    the largest tenth of clean margins begins, in units of their mean distance beyond; of several networks the most
    surprised counts. No attack is needed to fit it.

    Source: Han et al. 2025, arXiv:2506.03765. They take the auxiliary model's confidence in the label; the margin told
    more here, for networks that are trained one class against the rest too.
    """

    name: ClassVar[str] = "second_opinion"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    networks: tuple[SecondNetwork, ...] = field(default=(), repr=False)  # what was brought or trained

    @property
    def needs(self) -> tuple[Logits | SecondLogits, ...]:
        return (Logits(), *map(SecondLogits, self.networks))

    def fit(self, examples: Examples) -> SecondOpinionHead:
        if not self.networks:
            raise without_networks(self.name)
        logits = examples.clean[Logits()]
        tails = [tail(margin(examples.clean[SecondLogits(one)], logits)) for one in self.networks]
        return SecondOpinionHead(self, torch.stack(tails))

    def restore(self, state: Mapping[str, Tensor]) -> SecondOpinionHead:
        return SecondOpinionHead(self, state["tails"])


class SecondOpinionHead(Head):
    def __init__(self, detector: SecondOpinion, tails: Tensor) -> None:
        super().__init__(detector)
        self.asked = tuple(map(SecondLogits, detector.networks))
        self.register_buffer("tails", tails)  # [network, (start, scale)]
        self.tails: Tensor

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the margin [item] of the most surprised network over its clean tail; larger is more suspicious."""
        margins = torch.stack([margin(evidence[need], evidence[Logits()]) for need in self.asked], dim=1)
        return ((margins - self.tails[:, 0]) / self.tails[:, 1]).amax(dim=1)


def without_networks(detector: str) -> DataError:
    """Return the error of a detector that has no second network to ask."""
    return DataError(
        f"{detector} has no network to ask: bring one with --second, or let one be trained with --second-data"
    )


def margin(second: Tensor, logits: Tensor) -> Tensor:
    """Return the largest second logit of another class minus that of the model's label [item]; both [item, class]."""
    own = named_of(logits).to(second.dtype)
    behind = (second * own).sum(dim=1)
    lowered = second - own * (second.amax(dim=1, keepdim=True) - second.amin(dim=1, keepdim=True) + 1.0)
    return lowered.amax(dim=1) - behind


def tail(margins: Tensor) -> Tensor:
    """Return where the largest tenth of clean margins [item] begins, and their mean distance beyond."""
    start = margins.quantile(1 - TAIL_SHARE)
    beyond = margins[margins > start] - start
    scale = beyond.mean() if len(beyond) else margins.new_zeros(())
    return torch.stack([start, scale.clamp_min(MIN_SCALE_LOGIT)])


def second_opinion(taps: Sequence[str], *, networks: Sequence[SecondNetwork] = ()) -> Detector:
    del taps
    return SecondOpinion(tuple(networks))
