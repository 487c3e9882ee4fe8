"""X-Ensemble's rectifier: the places for which an item looks attacked are filled from those around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.data.kind_names import IN_PLACES, Kinds
from guard.offline.data.planes import neighbourhood_mean
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.networks.suspicion import Suspicion, train_suspicion

FILLING_PIXELS = 5  # of the window whose other places fill one
MIN_SHARE = 1e-3  # of a window's places; one that is filled as a whole keeps what it has


@dataclass(frozen=True)
class Rectifier(Learned):
    """Denoiser that fills the places from which a small network takes that an item was attacked.

    The network learns to tell the recipe's attacked items from clean ones. Filled is every place whose derivative is
    more than `threshold` of the way from the item's smallest to its largest.

    Source: Wang et al. 2020, KDD, "Interpretability is a kind of safety", section 3.3. Theirs asks the networks of the
    detector, fills with noise, and has the answer from a classifier that was trained on items filled so. Ours fills
    with the mean of the places around, and the production model answers, as it was not trained anew.
    """

    name: ClassVar[str] = "rectifier"
    kinds: ClassVar[Kinds] = IN_PLACES
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("places that are filled", "this step's places, held"),)

    threshold: float = 0.5  # of the way from the smallest derivative to the largest
    epochs: int = 20

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ConfigError(f"denoiser 'rectifier': threshold = {self.threshold!r}; wanted a share between 0 and 1")
        if self.epochs < 1:
            raise ConfigError(f"denoiser 'rectifier': epochs = {self.epochs!r}; wanted at least 1")

    def train(self, lessons: DenoiserLessons) -> nn.Module:
        lessons.check(self.name, pairs=True)
        return train_suspicion(lessons.clean, lessons.attacked, epochs=self.epochs, seed=lessons.seed)

    def __call__(self, images: Tensor) -> Tensor:
        network = self.network
        assert isinstance(network, Suspicion)  # noqa: S101
        return filled(images, places_above(network.slope(images), self.threshold))


def places_above(slope: Tensor, threshold: float) -> Tensor:
    """Return 1 for each place [item, 1, *places] whose largest derivative lies so far up between the item's own."""
    size = slope.abs().amax(dim=1, keepdim=True)
    flat = size.flatten(1)
    each = (-1, *[1] * (size.ndim - 1))
    least, most = flat.amin(dim=1).reshape(each), flat.amax(dim=1).reshape(each)
    return ((size > least + threshold * (most - least)) & (most > least)).to(slope.dtype)


def filled(images: Tensor, mask: Tensor) -> Tensor:
    """Return images [item, channel, *places] whose places under the mask are the mean of those around that are not."""
    kept = 1.0 - mask
    share = neighbourhood_mean(kept, FILLING_PIXELS)
    mean = neighbourhood_mean(images * kept, FILLING_PIXELS) / share.clamp_min(MIN_SHARE)
    return torch.where((mask > 0) & (share > MIN_SHARE), mean, images)
