"""Summary classifier: a small perceptron over a few numbers about the input, its gradient and its denoised versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from guard.offline.data.deviation import spread_of
from guard.offline.data.enough import check_attacked
from guard.offline.data.kind_names import Kinds
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.denoisers.table import denoisers, taken_by_all
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.settings import one_of
from guard.offline.detectors.parts.summary_numbers import numbers_of
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss, odds_of_attack
from guard.offline.evidence.kinds.gradients import InputGradient, Objective
from guard.offline.evidence.kinds.plain import Image, Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.training import Schedule
from guard.offline.networks.training import train as fit

# Standard deviations at which a number is cut: a perceptron cannot judge what it was not trained on
MAX_DEVIATIONS = 6.0


@dataclass(frozen=True)
class SummaryClassifier:
    """Detector that learns whether confidence, second opinions, gradient and grain fit together as in clean items.

    Confidence: gaps between the best logits, entropy, energy. Second opinions: how far each squeezer moves logits,
    probabilities and the log-odds of the predicted class. Gradient: size and sparsity. Grain: size, peakedness and
    correlations of the image's residual, and how it lies along the gradient; vectors have none but the last.
    A recipe may say `gradient = false`: a backward less, and nothing that is read of the gradient.

    Source: ours. The numbers are others': energy, Liu et al. 2020, arXiv:2010.03759; squeezing, Xu et al. 2018,
    arXiv:1704.01155; correlations of neighbouring residuals, Pevný et al. 2010 (SPAM, of steganalysis).
    """

    name: ClassVar[str] = "summary_classifier"
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("sign of an input gradient or a residual", "zero: its factors carry it"),
        StandIn("class that the model names", "this step's class, held"),
    )

    gradient: InputGradient | None = field(default_factory=lambda: InputGradient("margin"))  # None: what costs less
    squeezers: tuple[Denoiser, ...] = (BitDepth(4), Median(2))
    width: int = 64
    epochs: int = 30
    learning_rate: float = 5e-3

    @property
    def kinds(self) -> Kinds:
        """Kinds of input that all its squeezers take."""
        return taken_by_all(self.squeezers)

    @property
    def needs(self) -> tuple[Image | Logits | InputGradient | DenoisedLogits, ...]:
        gradient = () if self.gradient is None else (self.gradient,)
        return (Image(), Logits(), *gradient, *(DenoisedLogits(squeezer) for squeezer in self.squeezers))

    def fit(self, examples: Examples) -> SummaryClassifierHead:
        check_attacked(self.name, examples.count_attacked())
        parts = [summaries(self, evidence) for evidence in (examples.clean, examples.noisy, examples.attacked.items)]
        clean, noisy = len(parts[0]), len(parts[1])
        numbers, kinds = torch.cat(parts), item_kinds(clean + noisy, examples.attacked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(examples.seed)
            head = SummaryClassifierHead(self, numbers.shape[1], int(kinds.max()) + 1)
            train(head, numbers, kinds, item_weights(clean, noisy, examples.attacked), self)
        return head.eval().requires_grad_(False)

    def restore(self, state: Mapping[str, Tensor]) -> SummaryClassifierHead:
        head = SummaryClassifierHead(self, len(state["centre"]), len(state["body.4.bias"]))
        head.load_state_dict(dict(state))
        return head.eval().requires_grad_(False)


class SummaryClassifierHead(Head):
    def __init__(self, detector: SummaryClassifier, numbers: int, kinds: int) -> None:
        super().__init__(detector)
        self.asked, width = detector, detector.width
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(numbers))
        self.centre: Tensor
        self.spread: Tensor
        self.body = nn.Sequential(
            nn.Linear(numbers, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, kinds)
        )

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return odds_of_attack(self.answers(summaries(self.asked, evidence)))

    def answers(self, numbers: Tensor) -> Tensor:
        """Return unnormalised log-probabilities [item, kind]."""
        answers: Tensor = self.body(((numbers - self.centre) / self.spread).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS))
        return answers


def summaries(detector: SummaryClassifier, evidence: Evidence) -> Tensor:
    """Compute the summary numbers of each item [item, number]."""
    return numbers_of(
        evidence[Image()],
        evidence[Logits()],
        [evidence[DenoisedLogits(squeezer)] for squeezer in detector.squeezers],
        None if detector.gradient is None else evidence[detector.gradient],
    )


def train(
    head: SummaryClassifierHead, numbers: Tensor, kinds: Tensor, weights: Tensor, settings: SummaryClassifier
) -> None:
    """Train the head by AdamW in batches of 128, the learning rate falling along a cosine."""
    head.centre.copy_(numbers.mean(dim=0))
    head.spread.copy_(spread_of(numbers))
    fit(
        head,
        len(kinds),
        lambda index: kind_loss(head.answers(numbers[index]), kinds[index], weights[index]),
        Schedule(settings.epochs, 128, settings.learning_rate, weight_decay=0.1, falls="each epoch"),
    )


def summary_classifier(
    taps: Sequence[str],
    *,
    of: Objective = "margin",
    gradient: bool = True,
    squeezers: Sequence[Mapping[str, Any]] | None = None,
    width: int = 64,
    epochs: int = 30,
    learning_rate: float = 5e-3,
) -> Detector:
    del taps
    one_of("of", of, Objective)
    slope = InputGradient(of) if gradient else None
    asked = SummaryClassifier(slope, width=width, epochs=epochs, learning_rate=learning_rate)
    return asked if squeezers is None else replace(asked, squeezers=denoisers(squeezers))
