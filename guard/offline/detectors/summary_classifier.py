"""Summary classifier: a small perceptron over a few numbers about the input, its gradient and its denoised versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.data.input_kind import kind_like
from guard.offline.data.kind_names import Kinds
from guard.offline.data.planes import place_axes
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.denoisers.table import denoisers, taken_by_all
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.settings import one_of
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss, odds_of_attack
from guard.offline.evidence.kinds.gradients import InputGradient, Objective
from guard.offline.evidence.kinds.plain import Image, Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.training import Schedule
from guard.offline.networks.training import train as fit

MIN_ATTACKED_ITEMS = 20  # attacked items; below that nothing can be learned
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
        attacked = examples.count_attacked()
        if attacked < MIN_ATTACKED_ITEMS:
            raise DataError(
                f"summary_classifier learns from attacked items; got {attacked}, wanted at least {MIN_ATTACKED_ITEMS}"
            )
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
    logits, image = evidence[Logits()], evidence[Image()]
    opinions = [evidence[DenoisedLogits(squeezer)] for squeezer in detector.squeezers]
    named = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    columns = confidence(logits, named)
    for opinion in opinions:
        columns += disagreement(logits, opinion, named)
    if detector.gradient is not None:
        columns += direction(image, evidence[detector.gradient])
    if place_axes(image):
        columns += grain(image)
    return torch.stack(columns, dim=1)


def confidence(logits: Tensor, named: Tensor) -> list[Tensor]:
    best = logits.topk(min(3, logits.shape[1]), dim=1).values
    logs = logits.log_softmax(dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1)
    gaps = [best[:, 0] - best[:, place] for place in range(1, best.shape[1])]
    energy = logits.logsumexp(dim=1)
    return [
        *gaps,
        *((gap + 1e-2).log() for gap in gaps),
        (entropy + 1e-4).log(),
        energy,
        best[:, 0],
        belief(logits, named),
    ]


def disagreement(logits: Tensor, opinion: Tensor, named: Tensor) -> list[Tensor]:
    moved = (opinion.softmax(dim=1) - logits.softmax(dim=1)).abs().sum(dim=1)
    still = belief(opinion, named)
    return [(moved + 1e-4).log(), log_norm(logits - opinion), still, belief(logits, named) - still]


def direction(image: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the gradient's size and sparsity, and how the residual lies along it, with and without their sizes."""
    slope, fine = gradient.flatten(1), kind_like(image).residual(image).flatten(1)
    length, total = norm(slope), slope.abs().sum(dim=1)
    up, rough = slope.sign(), fine.sign()
    return [
        (length + 1e-9).log(),
        ((total + 1e-9) / (length + 1e-9)).log(),
        (fine * slope).sum(dim=1) / (length * norm(fine) + 1e-9),
        (fine * up).sum(dim=1) / (fine.abs().sum(dim=1) + 1e-9),
        (rough * slope).sum(dim=1) / (total + 1e-9),
        (rough * up).mean(dim=1),
    ]


def grain(image: Tensor) -> list[Tensor]:
    """Return size and peakedness of the image's residual, and its correlations with its neighbours, each [item]."""
    fine, values = kind_like(image).residual(image), tuple(range(1, image.ndim))
    power = fine.square().mean(dim=values) + 1e-8
    fourth = fine.square().square().mean(dim=values) + 1e-12
    pairs: Sequence[tuple[Tensor, Tensor]] = [
        *((fine.narrow(axis, 1, size - 1), fine.narrow(axis, 0, size - 1)) for axis, size in sides(fine)),
        *((fine[:, channel], fine[:, channel + 1]) for channel in range(fine.shape[1] - 1)),
    ]
    return [
        0.5 * power.log(),
        (fine.abs().flatten(1).mean(dim=1) + 1e-4).log(),
        fourth.log() - 2.0 * power.log(),
        *((a * b).flatten(1).mean(dim=1) / power for a, b in pairs),
    ]


def sides(items: Tensor) -> list[tuple[int, int]]:
    """Return the axes of space or time, each with its size."""
    return [(axis, items.shape[axis]) for axis in place_axes(items)]


def belief(logits: Tensor, named: Tensor) -> Tensor:
    """Return the log-odds [item] of the class that is named for each item [item, class]."""
    return (logits * named).sum(dim=1) - logits.masked_fill(named, -torch.inf).logsumexp(dim=1)


def norm(vectors: Tensor) -> Tensor:
    """Return the length of each vector [item], with a gradient that is finite at zero too."""
    return (vectors.square().sum(dim=1) + 1e-24).sqrt()


def log_norm(vectors: Tensor) -> Tensor:
    return (norm(vectors) + 1e-3).log()


def train(
    head: SummaryClassifierHead, numbers: Tensor, kinds: Tensor, weights: Tensor, settings: SummaryClassifier
) -> None:
    """Train the head by AdamW in batches of 128, the learning rate falling along a cosine."""
    head.centre.copy_(numbers.mean(dim=0))
    head.spread.copy_(numbers.std(dim=0).clamp_min(1e-6))
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
