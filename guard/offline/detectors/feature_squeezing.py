"""Feature squeezing: does the model's answer change when the input loses detail?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from guard.offline.data.kind_names import Kinds
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.denoisers.table import denoisers, taken_by_all
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class FeatureSqueezing:
    """Detector that scores how far the probabilities move, at most, when the input is squeezed.

    Source: Xu et al. 2018, arXiv:1704.01155, eq. 5, with their joint maximum over squeezers. Their choice for CIFAR-10
    is bit depth 5, a median of 2 x 2 and non-local means 13-3-2, each of which a recipe may name; ours has no third
    unless it does.
    """

    name: ClassVar[str] = "feature_squeezing"
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    squeezers: tuple[Denoiser, ...] = (BitDepth(4), Median(2))

    @property
    def kinds(self) -> Kinds:
        """Kinds of input that all its squeezers take."""
        return taken_by_all(self.squeezers)

    @property
    def needs(self) -> tuple[Logits | DenoisedLogits, ...]:
        return (Logits(), *(DenoisedLogits(squeezer) for squeezer in self.squeezers))

    def fit(self, examples: Examples) -> FeatureSqueezingHead:
        del examples  # nothing is learned; the threshold comes from calibration
        return FeatureSqueezingHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> FeatureSqueezingHead:
        del state
        return FeatureSqueezingHead(self)


class FeatureSqueezingHead(Head):
    def __init__(self, detector: FeatureSqueezing) -> None:
        super().__init__(detector)
        self.squeezers = detector.squeezers

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the largest L1 distance [item] between probabilities, 0 to 2.

        Low-confidence attacks lie high, others low.
        """
        plain = evidence[Logits()].softmax(dim=1)
        moved = [(evidence[DenoisedLogits(s)].softmax(dim=1) - plain).abs().sum(dim=1) for s in self.squeezers]
        return torch.stack(moved).amax(dim=0)


def feature_squeezing(taps: Sequence[str], *, squeezers: Sequence[Mapping[str, Any]] | None = None) -> Detector:
    del taps
    return FeatureSqueezing() if squeezers is None else FeatureSqueezing(denoisers(squeezers))
