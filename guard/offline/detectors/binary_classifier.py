"""Binary classifier: a small network over the input alone that learns what attacked items look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.input_kind import kind_like
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kind_network import KindNetwork, Learning, fit_kinds, restored_kinds
from guard.offline.evidence.kinds.plain import Image
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class BinaryClassifier:
    """Detector that tells attacked from other items by their values alone; it never asks the model.

    Beside the values it sees what each adds to the mean of its neighbourhood, where items have places.

    Source: Gong et al. 2017, arXiv:1704.04960, section 3. Theirs learns from tens of thousands of items what is faint
    beside the image; from hundreds a network of this size learns next to nothing without the fine structure beside it.
    Theirs tells clean from attacked; ours tells each attack apart as well, which is one more output each.
    """

    name: ClassVar[str] = "binary_classifier"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    learning: Learning = field(default_factory=Learning)

    @property
    def needs(self) -> tuple[Image, ...]:
        return (Image(),)

    def fit(self, examples: Examples) -> BinaryClassifierHead:
        return BinaryClassifierHead(self, fit_kinds(self.name, examples, looked_at, self.learning))

    def restore(self, state: Mapping[str, Tensor]) -> BinaryClassifierHead:
        return BinaryClassifierHead(self, restored_kinds(state, "network."))


class BinaryClassifierHead(Head):
    def __init__(self, detector: BinaryClassifier, network: KindNetwork) -> None:
        super().__init__(detector)
        self.network = network

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return self.network.odds(looked_at(evidence))


def looked_at(evidence: Evidence) -> Tensor:
    """Return the items and their fine structure [item, 2 x channel, ...]; of vectors, which have none, the items."""
    image = evidence[Image()]
    return image if image.ndim == 2 else torch.cat([image, kind_like(image).residual(image)], dim=1)


def binary_classifier(
    taps: Sequence[str], *, width: int = 16, epochs: int = 12, learning_rate: float = 3e-3
) -> Detector:
    del taps
    return BinaryClassifier(Learning(width, epochs, learning_rate))
