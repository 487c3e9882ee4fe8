"""The kinds of evidence a detector may name. A need is a hashable value; two detectors that share one pay once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


class Need(Protocol):
    """A kind of evidence and what it costs an item, in rows of a further forward pass and in backward passes."""

    @property
    def rows_per_item(self) -> int: ...

    @property
    def backwards(self) -> int: ...

    def __hash__(self) -> int: ...


Evidence = Mapping[Need, Tensor]


class Denoiser(Protocol):
    """A map from unit-space images [item, ...] to cleaned ones of the same shape; a frozen, printable value."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class PlainPass:
    """Comes with the one forward over the items themselves."""

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def backwards(self) -> int:
        return 0


@dataclass(frozen=True)
class Image(PlainPass):
    """The input itself, unit space [item, channel, height, width] or [item, feature]."""


@dataclass(frozen=True)
class Logits(PlainPass):
    """What the model says, before any softmax [item, class]."""


@dataclass(frozen=True)
class Latent(PlainPass):
    """What a layer says [item, feature]; feature maps are averaged over height and width."""

    tap: str


@dataclass(frozen=True)
class InputGradient:
    """Gradient to the input [shape of the input] of the predicted class's logit or of its margin over the runner-up."""

    of: Literal["logit", "margin"] = "logit"

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def backwards(self) -> int:
        return 1


@dataclass(frozen=True)
class DenoisedLogits:
    """What the model says about the denoised input [item, class]."""

    denoiser: Denoiser

    @property
    def rows_per_item(self) -> int:
        return 1

    @property
    def backwards(self) -> int:
        return 0
