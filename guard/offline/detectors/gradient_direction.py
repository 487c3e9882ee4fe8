"""Gradient direction: does the input gradient keep its direction when the input is slightly perturbed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.settings import one_of
from guard.offline.evidence.kinds.gradients import InputGradient, Noise, NoisedGradients, Objective
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class GradientDirection:
    """Detector that scores the angle between the gradient at the input and the gradient at noisy copies of it.

    Source: Wu et al. 2021, arXiv:2012.15386: directions of adversarial gradients after a single random perturbation.
    Only the abstract's statement was at hand; the gradient's objective (the margin over the runner-up), the noise and
    the cosine are ours, and so is that no classifier is trained on top.
    """

    name: ClassVar[str] = "gradient_direction"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    gradients: NoisedGradients

    @property
    def needs(self) -> tuple[InputGradient | NoisedGradients, ...]:
        return (InputGradient(self.gradients.of), self.gradients)

    def fit(self, examples: Examples) -> GradientDirectionHead:
        del examples  # nothing is learned; the threshold comes from calibration
        return GradientDirectionHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> GradientDirectionHead:
        del state
        return GradientDirectionHead(self)


class GradientDirectionHead(Head):
    def __init__(self, detector: GradientDirection) -> None:
        super().__init__(detector)
        self.gradients = detector.gradients

    def forward(self, evidence: Evidence) -> Tensor:
        """Return one minus the mean cosine [item], 0 to 2; an attacked input's gradient turns further."""
        own = unit(evidence[InputGradient(self.gradients.of)].flatten(1))
        noisy = unit(evidence[self.gradients].flatten(2))
        return 1.0 - (noisy * own[:, None]).sum(dim=2).mean(dim=1)


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors to length one along the last axis; a zero stays zero."""
    return vectors / (vectors.square().sum(dim=-1, keepdim=True) + 1e-24).sqrt()


def gradient_direction(
    taps: Sequence[str], *, of: Objective = "margin", noise: float = 0.02, rows: int = 1, seed: int = 0
) -> Detector:
    del taps
    one_of("of", of, Objective)
    return GradientDirection(NoisedGradients(Noise(noise, rows, seed), of))
