"""Evidence from the forward pass over variants of the items, denoised or steered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.needs import ForwardNeed, Pass
from guard.offline.evidence.steering import Steer, Steering


@dataclass(frozen=True)
class RowNeed(ForwardNeed):
    """Common part of the needs that take one row per item of the shared row pass.

    The row is another input, or it joins the pass where a layer of the plain pass is steered.
    """

    rides: ClassVar[Pass] = "rows"

    @property
    def rows_per_item(self) -> int:
        return 1

    @property
    def steers(self) -> Mapping[str, Steer]:
        """Steering at each steered tap, in the order of the forward pass; empty where the row is another input."""
        return {}

    def variant(self, images: Tensor) -> Tensor:
        """Return the row's own input [item, ...] in unit space, where it is another input."""
        return images


@dataclass(frozen=True)
class SteeredLogits(RowNeed):
    """Logits of the model [item, class] when some of its neurons are strengthened and the others weakened.

    The row joins the shared pass at the first layer that is steered; what comes before is the plain pass's own.
    """

    steering: Steering

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
    def stand_ins(self) -> tuple[StandIn, ...]:
        return self.denoiser.stand_ins

    def variant(self, images: Tensor) -> Tensor:
        return self.denoiser(images)
