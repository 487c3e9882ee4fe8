"""Evidence from a network that rebuilds the item: its reconstruction, and the model's answer to that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guard.offline.evidence.kinds.second import NetworkNeed, SecondNetwork
from guard.offline.evidence.kinds.variants import RowNeed
from guard.offline.evidence.needs import Evidence, Need


@dataclass(frozen=True)
class Reconstruction(NetworkNeed):
    """Item rebuilt by an autoencoder of the guard's own [shape of the input], cut to the unit box."""

    comparable: ClassVar[bool] = False

    def read(self, images: Tensor) -> Tensor:
        return super().read(images).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReconstructedLogits(RowNeed):
    """Logits of the model for the item rebuilt by an autoencoder [item, class]."""

    network: SecondNetwork

    @property
    def brings(self) -> tuple[Need, ...]:
        """The reconstruction itself, which costs the autoencoder's forward."""
        return (Reconstruction(self.network),)

    def variants(self, images: Tensor, fixed: Tensor | None, found: Evidence) -> Tensor:
        del images, fixed
        return found[Reconstruction(self.network)][None]
