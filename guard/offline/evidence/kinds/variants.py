"""Evidence from the forward pass over variants of the items, denoised or steered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.needs import Evidence, ForwardNeed, Pass
from guard.offline.evidence.steering import Steer, Steering
from guard.offline.model.classifier import Classifier


@dataclass(frozen=True)
class RowAnswers:
    """Outputs of the row pass at the rows of one need, from which needs read their evidence."""

    logits: Tensor  # [row, item, class]
    latents: Mapping[str, Tensor]  # by tap, feature maps averaged [row, item, feature]


class OwnPass(nn.Module):
    """Rows of one need that run by themselves, from a layer of the plain pass, or from the item itself, to the logits.

    Called with unit-space images [item, ...] and the plain pass's layers by tap, it returns the need's evidence.
    """

    joins: str | None = None  # tap of the plain pass at which they begin; None: at the item


@dataclass(frozen=True)
class RowNeed(ForwardNeed):
    """Common part of the needs that take rows of the shared row pass, one per item unless they say otherwise.

    The rows are other inputs, or they join the pass where a layer of the plain pass is changed.
    """

    rides: ClassVar[Pass] = "rows"

    @property
    def rows_per_item(self) -> int:
        return 1

    @property
    def source(self) -> RowNeed:
        """Need whose rows this one reads; its own unless it reads another's."""
        return self

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the layers that this need reads at its rows."""
        return ()

    @property
    def steers(self) -> Mapping[str, Steer]:
        """Steering at each steered tap, in the order of the forward pass; empty where the row is another input."""
        return {}

    def own_pass(self, classifier: Classifier) -> OwnPass | None:
        """Return the pass that runs this need's rows, where they are no other inputs and nothing is steered."""
        del classifier
        return None

    def fixed(self, shape: tuple[int, ...]) -> Tensor | None:
        """Return what the rows of items of a shape are made with and no item decides, [row, ...], if anything."""
        del shape
        return None

    def variants(self, images: Tensor, fixed: Tensor | None, found: Evidence) -> Tensor:
        """Return the rows' own inputs [row, item, ...] in unit space, where they are other inputs.

        `found` holds the evidence of second networks.
        """
        del fixed, found
        return self.variant(images)[None]

    def variant(self, images: Tensor) -> Tensor:
        """Return the row's own input [item, ...] in unit space, of a need with one row."""
        return images

    def read(self, rows: RowAnswers) -> Tensor:
        """Read the evidence [item, ...] from the outputs at this need's rows."""
        return rows.logits[0]


@dataclass(frozen=True)
class SteeredLogits(RowNeed):
    """Logits of the model [item, class] when some of its neurons are strengthened and the others weakened.

    The row joins the shared pass at the first layer that is steered; what comes before is the plain pass's own.
    """

    steering: Steering

    @property
    def opinion(self) -> str:
        """The name that this answer has where a verdict is explained."""
        return f"steered: {', '.join(self.steering.taps)}"

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        return (StandIn("class that steering strengthens", "this step's class, held"),)

    @property
    def steers(self) -> Mapping[str, Steer]:
        return {tap: Steer(mask, self.steering.strength) for tap, mask in self.steering.masks().items()}


@dataclass(frozen=True)
class DenoisedLogits(RowNeed):
    """Logits of the model for the denoised input [item, class]."""

    denoiser: Denoiser

    @property
    def opinion(self) -> str:
        """The name that this answer has where a verdict is explained."""
        return f"denoised: {self.denoiser!r}"

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        return self.denoiser.stand_ins

    def variant(self, images: Tensor) -> Tensor:
        return self.denoiser(images)


@dataclass(frozen=True)
class NoisyLogits(RowNeed):
    """Logits of the model [item, row, class] at fixed uniform noise around the item, the same for every item.

    `radius` is the largest change of a value, in unit space.
    """

    radius: float = 0.02
    rows: int = 16
    seed: int = 0

    @property
    def rows_per_item(self) -> int:
        return self.rows

    def fixed(self, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return self.radius * (2 * torch.rand((self.rows, 1, *shape), generator=generator) - 1)

    def variants(self, images: Tensor, fixed: Tensor | None, found: Evidence) -> Tensor:
        del found
        return images[None] if fixed is None else (images + fixed).clamp(0.0, 1.0)

    def read(self, rows: RowAnswers) -> Tensor:
        return rows.logits.transpose(0, 1)
