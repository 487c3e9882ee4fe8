"""Evidence from the backward pass: gradients with respect to the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.needs import Need, Pass
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import Adjoints

Objective = Literal["logit", "margin"]  # of the predicted class; margin: its lead over the runner-up


@dataclass(frozen=True)
class Noise:
    """Fixed Gaussian patterns, the same for every item, so that an item's evidence is the same at every request."""

    scale: float  # standard deviation in unit space
    rows: int = 1
    seed: int = 0

    def patterns(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise patterns [row, *shape of an item] from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.scale * torch.randn((self.rows, *shape), generator=generator)


class GradientNeed:
    """Common part of the needs that the backward pass meets, at the item itself or at noisy copies of it."""

    rides: ClassVar[Pass] = "backward"
    compiles: ClassVar[bool] = True
    comparable: ClassVar[bool] = False

    of: Objective

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def backwards(self) -> int:
        return 1

    @property
    def forwards(self) -> float:
        return 0.0

    @property
    def brings(self) -> tuple[Need, ...]:
        return ()

    def lacks(self, classifier: Classifier) -> str | None:
        del classifier
        return None

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        return (
            StandIn("ReLU's step in an input gradient", "softplus of sharpness 10"),
            StandIn("class whose gradient is taken", "this step's class, held"),
        )


@dataclass(frozen=True)
class InputGradient(GradientNeed):
    """Input gradient [shape of the input] of the predicted class's logit, or of its margin over the runner-up."""

    of: Objective = "logit"


class CopyNeed(GradientNeed, ABC):
    """Common part of the needs that read the gradient at copies of the item, always of the item's own class.

    A copy is a share of the item and a fixed pattern added to it, cut to the unit box.
    """

    @abstractmethod
    def shares(self) -> tuple[float, ...]:
        """Return the share of the item in each copy."""

    @abstractmethod
    def patterns(self, shape: tuple[int, ...]) -> Tensor:
        """Return what is added to each copy [row, *shape of an item]."""

    def read(self, images: Tensor, gradients: Tensor) -> Tensor:
        """Read the evidence from the gradients at the copies [item, row, shape of the input]."""
        del images
        return gradients

    @property
    def rows_per_item(self) -> int:
        return len(self.shares())

    @property
    def backwards(self) -> int:
        return self.rows_per_item

    @property
    def brings(self) -> tuple[Need, ...]:
        """The item's own gradient, since the item runs beside its copies in the plain pass."""
        return (InputGradient(self.of),)


@dataclass(frozen=True)
class NoisedGradients(CopyNeed):
    """`InputGradient` at noisy copies of the item [item, row, shape of the input], always of the item's own class."""

    noise: Noise
    of: Objective = "logit"

    def shares(self) -> tuple[float, ...]:
        return (1.0,) * self.noise.rows

    def patterns(self, shape: tuple[int, ...]) -> Tensor:
        return self.noise.patterns(shape)


class RuledNeed(GradientNeed, ABC):
    """Common part of the needs that a backward by another rule than the gradient's meets; each is one more backward."""

    @abstractmethod
    def table(self, adjoints: Adjoints) -> Adjoints:
        """Return the table of adjoints by this rule, made of the gradient's own."""

    def read(self, images: Tensor, sent: Tensor) -> Tensor:
        """Read the evidence from what the backward sends to the input [shape of the input]."""
        del images
        return sent


def predicted_class(logits: Tensor) -> Tensor:
    """Return the seed [item, class] of the predicted class's logit."""
    return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def predicted_margin(logits: Tensor) -> Tensor:
    """Return the seed [item, class] of the predicted class's margin over the runner-up."""
    first = predicted_class(logits)
    return first - predicted_class(logits - first * (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True) + 1.0))


SEEDS = {"logit": predicted_class, "margin": predicted_margin}
