"""MagNet's reformer: the item as an autoencoder of clean items rebuilds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.networks.reconstruction import train_autoencoder


@dataclass(frozen=True)
class Reformer(Learned):
    """Denoiser that rebuilds an item by an autoencoder of clean ones, which moves it towards where these lie.

    With the same settings it is the network of detector `magnet`, which reads the same rebuilt item as evidence.

    Source: Meng and Chen 2017, arXiv:1705.09064, section 4.3. Of their several autoencoders, one of which is drawn for
    each item, ours has one.
    """

    name: ClassVar[str] = "reformer"
    kinds: ClassVar[Kinds] = ALIKE
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    noise: float = 0.1  # standard deviation in unit space, of what the autoencoder learns to take off
    epochs: int = 30

    def train(self, lessons: DenoiserLessons) -> nn.Module:
        lessons.check(self.name, pairs=False)
        known = lessons.autoencoders.get((self.noise, self.epochs))
        if known is not None:
            return known
        return train_autoencoder(lessons.clean, noise=self.noise, epochs=self.epochs, seed=lessons.seed)

    def __call__(self, images: Tensor) -> Tensor:
        rebuilt: Tensor = self.network(images)
        return rebuilt.clamp(0.0, 1.0)
