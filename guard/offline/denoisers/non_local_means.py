"""Non-local means: a pixel becomes the mean of those whose surroundings look like its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.data.planes import as_planes, neighbourhood_mean
from guard.offline.denoisers.stand_in import StandIn


@dataclass(frozen=True)
class NonLocalMeans:
    """Denoiser that replaces each pixel by a mean of those around it, weighted by how alike their patches are.

    A pixel at most `search` // 2 away weighs exp(-d / h^2): d is the mean squared difference of the two patches of
    `patch` x `patch` pixels, over all channels, and h is `strength` in unit space. Borders are reflected. The defaults
    are the paper's for CIFAR-10, 13-3-2 of 256 grey levels. Series compare along time, vectors along the features.

    Source: Buades et al. 2005, as Xu et al. 2018, arXiv:1704.01155, section III-B, use it.
    """

    name: ClassVar[str] = "non_local_means"
    kinds: ClassVar[Kinds] = ALIKE
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    search: int = 13
    patch: int = 3
    strength: float = 2 / 255

    def __post_init__(self) -> None:
        for setting, value in (("search", self.search), ("patch", self.patch)):
            if value < 3 or value % 2 == 0:
                raise ConfigError(
                    f"denoiser 'non_local_means': {setting} = {value!r}; wanted an odd number of pixels from 3 on"
                )
        if not self.strength > 0:
            raise ConfigError(f"denoiser 'non_local_means': strength = {self.strength!r}; wanted a number above 0")

    def __call__(self, images: Tensor) -> Tensor:
        planes = as_planes(images)
        channels, height, width = planes.shape[1:]
        places = torch.from_numpy(neighbours(height, width, self.search))
        shifts = len(places)
        # [item, channel, shift, pixel]: what lies at each shift from each pixel
        others = planes.flatten(2).index_select(2, places.flatten()).reshape(-1, channels, shifts, height * width)
        apart = (others - planes.reshape(-1, channels, 1, height * width)).square().mean(dim=1)
        surroundings = apart.reshape(-1, shifts, height, width)
        if height == 1:
            surroundings = surroundings.squeeze(2)
        alike = neighbourhood_mean(surroundings, self.patch).reshape(-1, 1, shifts, height * width)
        weights = torch.exp(alike * (-1 / self.strength**2))
        mean: Tensor = (weights * others).sum(dim=2) / weights.sum(dim=2)
        return mean.clamp(0, 1).reshape(images.shape)


def neighbours(height: int, width: int, search: int) -> NDArray[np.int64]:
    """Return the pixel at each shift from each pixel [shift, pixel], borders reflected; a line has no other rows."""
    down, across = (reflected(size, search) for size in (height, width))
    rows = down if height > 1 else down[:1]
    return np.stack([
        (row[:, None] * width + column[None, :]).ravel() for row in rows for column in across
    ])  # fmt: skip


def reflected(size: int, search: int) -> NDArray[np.int64]:
    """Return where each place looks at each shift [shift, place]."""
    reach = search // 2 if size > 1 else 0
    line = np.pad(np.arange(size), reach, mode="reflect")
    return np.stack([line[start : start + size] for start in range(2 * reach + 1)])
