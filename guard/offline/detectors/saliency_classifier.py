"""A small network that looks at the input and at where the model looked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.detectors.detector import Examples, Head, take
from guard.offline.evidence.needs import Evidence, Image, InputGradient, Need

NOISE_SHARE = 0.25  # of the negatives' weight
FEWEST = 20  # attacked items; below that nothing can be learned


@dataclass(frozen=True)
class SaliencyClassifier:
    """Do the input and its saliency map look like those of attacked items?

    A CNN over image and input gradient [item, 2 x channel, height, width]; a perceptron where inputs are vectors.

    Source: Zhang et al. 2018, arXiv:1803.08773. We keep the gradient's sign, scale each map to unit root mean square,
    and add the logarithm of its size, which the scaling would lose.
    """

    gradient: InputGradient = field(default_factory=InputGradient)
    width: int = 16
    epochs: int = 12
    learning_rate: float = 3e-3

    @property
    def name(self) -> str:
        return "saliency_classifier"

    @property
    def needs(self) -> tuple[Image | InputGradient, ...]:
        return (Image(), self.gradient)

    def fit(self, examples: Examples) -> SaliencyClassifierHead:
        if examples.count_attacked() < FEWEST:
            raise DataError(
                f"saliency_classifier learns from attacked items; got {examples.count_attacked()}, "
                f"wanted at least {FEWEST}"
            )
        evidence: dict[Need, Tensor] = {
            need: torch.cat([examples.negatives(need), examples.attacked[need]]) for need in self.needs
        }
        positives = examples.count_attacked()
        target = torch.zeros(len(evidence[Image()]))
        target[-positives:] = 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(examples.seed)
            head = SaliencyClassifierHead(self.gradient, evidence[Image()].shape[1:], self.width)
            train(head, evidence, target, item_weights(examples), self)
        return head.eval().requires_grad_(False)

    def restore(self, state: Mapping[str, Tensor]) -> SaliencyClassifierHead:
        first = state["body.0.weight"]  # [filter, 2 x channel, height, width] or [filter, 2 x feature]
        head = SaliencyClassifierHead(self.gradient, torch.Size((first.shape[1] // 2, *first.shape[2:])), self.width)
        head.load_state_dict(dict(state))
        return head.eval().requires_grad_(False)


class SaliencyClassifierHead(Head):
    def __init__(self, gradient: InputGradient, shape: torch.Size, width: int) -> None:
        super().__init__()
        self.gradient = gradient
        self.body = convolutional(2 * shape[0], width) if len(shape) == 3 else perceptron(2 * shape[0], 4 * width)
        self.last = nn.Linear(4 * width + 1, 1)
        self.register_buffer("size_mean", torch.zeros(()))
        self.register_buffer("size_spread", torch.ones(()))
        self.size_mean: Tensor
        self.size_spread: Tensor

    def forward(self, evidence: Evidence) -> Tensor:
        """Log-odds of "attacked" [item]; larger is more suspicious."""
        image, gradient = evidence[Image()], evidence[self.gradient]
        size = root_mean_square(gradient)
        unit = gradient / size.reshape(-1, *[1] * (gradient.ndim - 1))
        features = self.body(torch.cat([2.0 * image - 1.0, unit], dim=1))
        scaled = (size.log() - self.size_mean) / self.size_spread
        score: Tensor = self.last(torch.cat([features, scaled[:, None]], dim=1)).squeeze(1)
        return score


def root_mean_square(gradient: Tensor) -> Tensor:
    """[item]; never zero."""
    return (gradient.flatten(1).square().mean(dim=1) + 1e-16).sqrt()


def convolutional(channels: int, width: int) -> nn.Sequential:
    """Three stages of convolutions, the last averaged: [item, channel, height, width] -> [item, 4 x width]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def perceptron(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def item_weights(examples: Examples) -> Tensor:
    """Weights [clean, noisy and attacked items in this order], mean one.

    Attacks weigh as much as all negatives, each family as much as the next; noise a quarter of the negatives.
    """
    clean, noisy = len(examples.labels), len(examples.noisy[Image()])
    share = NOISE_SHARE if noisy else 0.0
    counts = {family: examples.families.count(family) for family in examples.families}
    attacked = torch.tensor([1.0 / (len(counts) * counts[family]) for family in examples.families])
    weights = torch.cat(
        [torch.full((clean,), (1 - share) / clean), torch.full((noisy,), share / max(noisy, 1)), attacked]
    )
    return weights / weights.mean()


def train(
    head: SaliencyClassifierHead, evidence: Evidence, target: Tensor, weights: Tensor, settings: SaliencyClassifier
) -> None:
    """Weighted logistic loss by AdamW in batches of 64, the learning rate falling along a cosine."""
    sizes = root_mean_square(evidence[settings.gradient]).log()
    head.size_mean.copy_(sizes.mean())
    head.size_spread.copy_(sizes.std().clamp_min(1e-3))
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    for _ in range(settings.epochs):
        for index in torch.randperm(len(target)).split(64):
            loss = nn.functional.binary_cross_entropy_with_logits(
                head(take(evidence, index)), target[index], weights[index]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
