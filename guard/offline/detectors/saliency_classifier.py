"""Saliency classifier: a small network over the input and the model's saliency map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from guard.offline.data.enough import check_attacked
from guard.offline.data.input_kind import kind_like
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.settings import one_of
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss, odds_of_attack
from guard.offline.evidence.kinds.gradients import InputGradient, Noise, NoisedGradients, Objective
from guard.offline.evidence.kinds.plain import Image
from guard.offline.evidence.needs import Evidence, Need, take
from guard.offline.networks.architectures import feature_network
from guard.offline.networks.training import Schedule
from guard.offline.networks.training import train as fit

Map = Literal["gradient", "gradient_x_input", "smoothgrad"]


@dataclass(frozen=True)
class SaliencyClassifier:
    """Detector that learns whether the input's fine structure follows the saliency map, as a perturbation does.

    A CNN over the residual of an image or a series, the saliency map, and their product [item, 3 x channel, ...]; a
    perceptron over the same three, the input itself in the residual's place, where inputs are vectors.

    Source: Zhang et al. 2018, arXiv:1803.08773; theirs sees the image and the absolute gradient. On natural images a
    network of this size then learns the images; what an image adds to the mean of its neighbourhood tells more, and an
    attack steps along the gradient's sign, so we keep it. Maps are scaled to unit root mean square, and the logarithm
    of their size, which the scaling loses, is given beside. `smoothgrad`: Smilkov et al. 2017, arXiv:1706.03825, the
    mean gradient of noisy copies.
    """

    name: ClassVar[str] = "saliency_classifier"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    gradient: InputGradient | NoisedGradients = field(default_factory=lambda: InputGradient("margin"))
    map: Map = "gradient"
    width: int = 16
    epochs: int = 12
    learning_rate: float = 3e-3

    @property
    def needs(self) -> tuple[Image | InputGradient | NoisedGradients, ...]:
        return (Image(), self.gradient)

    def fit(self, examples: Examples) -> SaliencyClassifierHead:
        check_attacked(self.name, examples.count_attacked())
        evidence: dict[Need, Tensor] = {
            need: torch.cat([examples.negatives(need), examples.attacked.items[need]]) for need in self.needs
        }
        positives, noisy = examples.count_attacked(), len(examples.noisy[Image()])
        negatives = len(evidence[Image()]) - positives
        kinds = item_kinds(negatives, examples.attacked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(examples.seed)
            head = SaliencyClassifierHead(self, evidence[Image()].shape[1:], int(kinds.max()) + 1)
            train(head, evidence, kinds, item_weights(negatives - noisy, noisy, examples.attacked), self)
        return head.eval().requires_grad_(False)

    def restore(self, state: Mapping[str, Tensor]) -> SaliencyClassifierHead:
        first = state[
            "body.0.weight"
        ]  # [filter, 3 x channel, height, width], [filter, 3 x channel, time] or [filter, 3 x feature]
        shape = torch.Size((first.shape[1] // 3, *first.shape[2:]))
        head = SaliencyClassifierHead(self, shape, len(state["last.bias"]))
        head.load_state_dict(dict(state))
        return head.eval().requires_grad_(False)


class SaliencyClassifierHead(Head):
    def __init__(self, detector: SaliencyClassifier, shape: torch.Size, kinds: int) -> None:
        super().__init__(detector)
        self.gradient, self.map, width = detector.gradient, detector.map, detector.width
        self.body = feature_network(shape, 3, width)
        self.last = nn.Linear(4 * width + 1, kinds)
        self.register_buffer("residual_spread", torch.ones(()))
        self.register_buffer("size_mean", torch.zeros(()))
        self.register_buffer("size_spread", torch.ones(()))
        self.residual_spread: Tensor
        self.size_mean: Tensor
        self.size_spread: Tensor

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return odds_of_attack(self.answers(evidence))

    def answers(self, evidence: Evidence) -> Tensor:
        """Return unnormalised log-probabilities [item, kind]."""
        saliency = self.saliency(evidence)
        size = root_mean_square(saliency)
        unit = saliency / size.reshape(-1, *[1] * (saliency.ndim - 1))
        image = evidence[Image()]
        fine = kind_like(image).residual(image) / self.residual_spread
        features = self.body(torch.cat([fine, unit, fine * unit], dim=1))
        scaled = (size.log() - self.size_mean) / self.size_spread
        answers: Tensor = self.last(torch.cat([features, scaled[:, None]], dim=1))
        return answers

    def saliency(self, evidence: Evidence) -> Tensor:
        """Return the saliency map [shape of the input]."""
        gradient = evidence[self.gradient]
        if self.map == "smoothgrad":
            return gradient.mean(dim=1)
        return gradient * evidence[Image()] if self.map == "gradient_x_input" else gradient


def root_mean_square(gradient: Tensor) -> Tensor:
    """Return the root mean square of each item [item]; never zero."""
    return (gradient.flatten(1).square().mean(dim=1) + 1e-16).sqrt()


def train(
    head: SaliencyClassifierHead, evidence: Evidence, kinds: Tensor, weights: Tensor, settings: SaliencyClassifier
) -> None:
    """Train the head by AdamW in batches of 64, the learning rate falling along a cosine."""
    image = evidence[Image()]
    head.residual_spread.copy_(kind_like(image).residual(image).std().clamp_min(1e-3))
    sizes = root_mean_square(head.saliency(evidence)).log()
    head.size_mean.copy_(sizes.mean())
    head.size_spread.copy_(sizes.std().clamp_min(1e-3))
    fit(
        head,
        len(kinds),
        lambda index: kind_loss(head.answers(take(evidence, index)), kinds[index], weights[index]),
        Schedule(settings.epochs, 64, settings.learning_rate, weight_decay=1e-3, falls="each epoch"),
    )


def saliency_classifier(
    taps: Sequence[str],
    *,
    map: Map = "gradient",
    of: Objective = "margin",
    noise: float = 0.02,
    rows: int = 4,
    width: int = 16,
    epochs: int = 12,
    learning_rate: float = 3e-3,
) -> Detector:
    """Build the detector. `noise` and `rows` are the settings of SmoothGrad."""
    del taps
    one_of("map", map, Map)
    one_of("of", of, Objective)
    gradient = NoisedGradients(Noise(noise, rows), of) if map == "smoothgrad" else InputGradient(of)
    return SaliencyClassifier(gradient, map, width, epochs, learning_rate)
