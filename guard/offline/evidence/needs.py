"""The kinds of evidence a detector may name. A need is a hashable value; two detectors that share one pay once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.evidence.steering import Steering


class Need(Protocol):
    """A kind of evidence and what it costs an item, in rows of a further forward pass and in backward passes."""

    @property
    def rows_per_item(self) -> int: ...

    @property
    def backwards(self) -> int: ...

    def __hash__(self) -> int: ...


Evidence = Mapping[Need, Tensor]
Objective = Literal["logit", "margin"]  # of the predicted class; margin: over the runner-up


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
class OneRow:
    """Takes a row of the shared row pass."""

    @property
    def rows_per_item(self) -> int:
        return 1

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

    of: Objective = "logit"

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def backwards(self) -> int:
        return 1


@dataclass(frozen=True)
class Noise:
    """Fixed Gaussian patterns, the same for every item: an item's evidence is the same whenever it is asked for."""

    scale: float  # standard deviation in unit space
    rows: int = 1
    seed: int = 0

    def patterns(self, shape: tuple[int, ...]) -> Tensor:
        """[row, *shape of an item]"""
        generator = torch.Generator().manual_seed(self.seed)
        return self.scale * torch.randn((self.rows, *shape), generator=generator)


@dataclass(frozen=True)
class NoisedGradients:
    """`InputGradient` at noisy copies of the item [item, row, shape of the input], always of the item's own class."""

    noise: Noise
    of: Objective = "logit"

    @property
    def rows_per_item(self) -> int:
        return self.noise.rows

    @property
    def backwards(self) -> int:
        return self.noise.rows


@dataclass(frozen=True)
class ChannelAttribution(PlainPass):
    """What each channel of a layer adds to the predicted class's logit [item, channel]: gradient times activation.

    Only to be asked for while fitting: it has no compiled form.
    """

    tap: str


@dataclass(frozen=True)
class SteeredLogits(OneRow):
    """What the model says when some of its neurons are strengthened and the others weakened [item, class].

    Its row joins the shared pass at the first layer that is steered; what comes before is the plain pass's own.
    """

    steering: Steering


@dataclass(frozen=True)
class DenoisedLogits(OneRow):
    """What the model says about the denoised input [item, class]."""

    denoiser: Denoiser


def take(evidence: Evidence, index: Tensor) -> Mapping[Need, Tensor]:
    """Some of the items."""
    return {need: value[index] for need, value in evidence.items()}
