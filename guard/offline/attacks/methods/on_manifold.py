"""Attack on the data's manifold: Carlini and Wagner's, with a penalty on what an autoencoder does not reconstruct."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero, whole
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import per_item
from guard.offline.attacks.objective import Gap
from guard.offline.data.norms import Measure
from guard.offline.networks.architectures import autoencoder
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import Knowledge, drawn, knowledge_of, recalled

BOX_SHARE = 1 - 1e-3  # tanh space begins this far inside the box: on its border the gradient is zero
LAST_RATE_SHARE = 0.1  # of the learning rate over one descent


def taught(inputs: Tensor, *, epochs: int, generator: torch.Generator) -> nn.Module:
    """Train an autoencoder of these items, by mean square error."""
    network = drawn(partial(autoencoder, tuple(inputs.shape[1:])), generator, inputs)
    train(
        network,
        len(inputs),
        lambda index: (network(inputs[index]) - inputs[index]).square().mean(),
        Schedule(epochs, batch_items=16),
        generator,
    )
    return network.requires_grad_(False)


def on_manifold(
    model: Model,
    encoder: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    searches: int = 4,
    learning_rate: float = 0.1,
    weight: float = 0.1,
    confidence: float = 0.0,
    constant: float = 1.0,
    targets: Tensor | None = None,
) -> Tensor:
    """Return the fooling point of lowest |d|^2 + weight * |x + d - encoder(x + d)|^2, squares summed over an item.

    An item that nothing fooled comes back as it was. The constant that weighs fooling against this cost is searched for
    as in `cw`: tenfold up while an item resists, or down while it yields, then halving in logarithm. Deterministic.
    Costs at most searches * steps forwards and backwards, of the model and of the autoencoder.

    Source: Dhurandhar et al. 2018, arXiv:1802.07623, eq. 1, pertinent negatives; as an attack: Liu et al. 2021,
    arXiv:2004.11488. Their L1 term is left out, and so is their demand that values be added only.
    """
    best, best_cost = inputs.clone(), inputs.new_full((len(inputs),), torch.inf)
    ratio = torch.full_like(best_cost, constant)
    lower, upper = torch.zeros_like(ratio), torch.full_like(ratio, torch.inf)
    for _ in range(searches):
        points, cost = descend(
            model, encoder, inputs, Gap(labels, targets), ratio, steps, learning_rate, weight, confidence
        )
        better = cost < best_cost
        best, best_cost = torch.where(per_item(better, best), points, best), torch.minimum(cost, best_cost)
        fooled = cost.isfinite()
        lower, upper = torch.where(fooled, lower, ratio), torch.where(fooled, ratio, upper)
        between = torch.where(lower == 0, upper / 10, (lower * upper).sqrt())
        ratio = torch.where(upper.isinf(), 10 * ratio, between)
    return best


def descend(
    model: Model,
    encoder: nn.Module,
    inputs: Tensor,
    gap: Gap,
    ratio: Tensor,
    steps: int,
    learning_rate: float,
    weight: float,
    confidence: float,
) -> tuple[Tensor, Tensor]:
    """Return the cheapest fooling points on one way down, and their cost [item], infinite where there was none."""
    found, found_cost = inputs.clone(), torch.full_like(ratio, torch.inf)
    walk = torch.atanh((2 * inputs - 1) * BOX_SHARE)
    mean, square = torch.zeros_like(walk), torch.zeros_like(walk)
    for step in range(1, steps + 1):
        squashed = torch.tanh(walk)
        points = (squashed + 1) / 2
        cost, slope = off_manifold(encoder, points, inputs, weight)
        _, ahead, rise = model.value_and_gradient(points, gap)
        better = (ahead > confidence) & (cost < found_cost)
        found, found_cost = torch.where(per_item(better, found), points, found), torch.where(better, cost, found_cost)
        short = per_item(ratio * (ahead <= confidence), rise)
        gradient = (slope - short * rise) * (1 - squashed.square()) / 2
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        rate = learning_rate * LAST_RATE_SHARE ** (step / steps)
        walk = walk - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return found, found_cost


def off_manifold(encoder: nn.Module, points: Tensor, inputs: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Return the cost of being moved and of not being reconstructed [item], and its gradient."""
    with torch.enable_grad():
        watched = points.detach().requires_grad_()
        missed = (watched - encoder(watched)).square().flatten(1).sum(dim=1)
        cost = (watched - inputs).square().flatten(1).sum(dim=1) + weight * missed
        (slope,) = torch.autograd.grad(cost.sum(), watched)
    return cost.detach(), slope


@dataclass(frozen=True, repr=False)
class OnManifold:
    """Attack on the data's manifold as a value, untargeted."""

    name: ClassVar[str] = "on_manifold"
    norm: ClassVar[Measure] = "l2"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(learns=True)

    steps: int = 100
    searches: int = 4
    learning_rate: float = 0.1
    weight: float = 0.1
    confidence: float = 0.0
    constant: float = 1.0
    epochs: int = 40
    learning_items: int = 512

    def __post_init__(self) -> None:
        whole(self, "steps", "searches", "epochs", "learning_items")
        more_than_zero(self, "learning_rate", "weight", "constant")
        if self.confidence != 0:
            more_than_zero(self, "confidence")

    @property
    def family(self) -> Family:
        return Family.HIGH_CONFIDENCE if self.confidence > 0 else Family.LOW_CONFIDENCE

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        del model, labels  # the autoencoder learns from the items alone
        return knowledge_of(taught(inputs, epochs=self.epochs, generator=generator))

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        del generator  # nothing is drawn any more
        encoder = recalled(partial(autoencoder, tuple(inputs.shape[1:])), knowledge, inputs)
        return on_manifold(
            model,
            encoder,
            inputs,
            labels,
            steps=self.steps,
            searches=self.searches,
            learning_rate=self.learning_rate,
            weight=self.weight,
            confidence=self.confidence,
            constant=self.constant,
        )

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
