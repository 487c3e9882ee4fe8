"""Evidence from the one forward pass over the items themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from guard.offline.evidence.needs import ForwardNeed, Pass


@dataclass(frozen=True)
class PlainAnswers:
    """Outputs of the plain pass, from which needs read their evidence."""

    images: Tensor  # [item, ...] in unit space
    logits: Tensor  # [item, class]
    latents: Mapping[str, Tensor]  # by tap [item, ...]
    after: Callable[[str], fx.GraphModule]  # the rest of the model behind a tap
    multiply_adds: Callable[[], int]  # of one forward of the model


@dataclass(frozen=True)
class PlainNeed(ForwardNeed, ABC):
    """Common part of the needs that the plain pass meets."""

    rides: ClassVar[Pass] = "plain"

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the layers that this need reads."""
        return ()

    @abstractmethod
    def read(self, plain: PlainAnswers) -> Tensor:
        """Read the evidence [item, ...] from the outputs of the plain pass."""


@dataclass(frozen=True)
class Image(PlainNeed):
    """Input itself in unit space, [item, channel, height, width], [item, channel, time] or [item, feature]."""

    comparable: ClassVar[bool] = False

    def read(self, plain: PlainAnswers) -> Tensor:
        return plain.images


@dataclass(frozen=True)
class Logits(PlainNeed):
    """Logits of the model [item, class], before any softmax."""

    def read(self, plain: PlainAnswers) -> Tensor:
        return plain.logits


@dataclass(frozen=True)
class Latent(PlainNeed):
    """Output of a layer [item, feature]; feature maps are averaged over space or time."""

    tap: str

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def read(self, plain: PlainAnswers) -> Tensor:
        return pooled(plain.latents[self.tap], plain.images)


@dataclass(frozen=True)
class FeatureMap(PlainNeed):
    """Output of a layer as it is [item, channel, height, width], [item, channel, time] or [item, feature]."""

    tap: str

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def read(self, plain: PlainAnswers) -> Tensor:
        return plain.latents[self.tap]


@dataclass(frozen=True)
class ModelSize(PlainNeed):
    """Multiply-adds of one forward of the model [item], the same for every item: what another network's are held to."""

    compiles: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    def read(self, plain: PlainAnswers) -> Tensor:
        return torch.full((len(plain.logits),), plain.multiply_adds(), dtype=torch.float64)


@dataclass(frozen=True)
class ChannelAttribution(PlainNeed):
    """Contribution of a layer's channels to the predicted class's logit [item, channel]: gradient times activation."""

    tap: str

    compiles: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def read(self, plain: PlainAnswers) -> Tensor:
        return attribution(plain.after(self.tap), plain.latents[self.tap])


def pooled(latent: Tensor, images: Tensor) -> Tensor:
    """Average feature maps [item, channel, height, width] to [item, channel]; flatten anything else.

    The maps of a series [item, channel, time] are of as many axes as the series.
    """
    if latent.ndim == 4:
        return latent.mean(dim=(2, 3))
    return latent.mean(dim=2) if latent.ndim == images.ndim == 3 else latent.flatten(1)


def attribution(after: fx.GraphModule, latent: Tensor) -> Tensor:
    """Return the gradient of the predicted class's logit times the layer, summed over each channel [item, channel]."""
    with torch.enable_grad():
        watched = latent.detach().requires_grad_(True)
        logits = after(watched, watched)
        (slope,) = torch.autograd.grad(logits.amax(dim=1).sum(), watched)
    product = (slope * watched).detach()
    return product.flatten(2).sum(dim=2) if product.ndim > 2 else product
