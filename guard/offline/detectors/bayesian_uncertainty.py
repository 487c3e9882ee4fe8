"""Bayesian uncertainty: does the model's answer scatter when its dropout is left on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.evidence.kinds.dropout import DropoutLogits
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class BayesianUncertainty:
    """Detector that scores how much the probabilities vary over forwards with dropout, the mean over classes.

    A model without dropout is not asked; `guard check` says so.

    Source: Feinman et al. 2017, arXiv:1703.00410, section 5.2, the mean of variances over classes of 50 forwards; ours
    are 20 by default, each with values dropped that are the same for every item.
    """

    name: ClassVar[str] = "bayesian_uncertainty"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    dropped: DropoutLogits = field(default_factory=DropoutLogits)

    @property
    def needs(self) -> tuple[DropoutLogits, ...]:
        return (self.dropped,)

    def fit(self, examples: Examples) -> BayesianUncertaintyHead:
        del examples  # nothing is learned; the threshold comes from calibration
        return BayesianUncertaintyHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> BayesianUncertaintyHead:
        del state
        return BayesianUncertaintyHead(self)


class BayesianUncertaintyHead(Head):
    def __init__(self, detector: BayesianUncertainty) -> None:
        super().__init__(detector)
        self.dropped = detector.dropped

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the logarithm of the mean variance [item]; larger is more suspicious."""
        answers = evidence[self.dropped].softmax(dim=2)
        variance = (answers - answers.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))
        return (variance + 1e-8).log()


def bayesian_uncertainty(taps: Sequence[str], *, rows: int = 20, seed: int = 0) -> Detector:
    del taps
    return BayesianUncertainty(DropoutLogits(rows, seed))
