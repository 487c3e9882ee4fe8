"""Moving average: each value becomes the mean of its neighbourhood, which takes off what is quick and small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from guard.errors import ConfigError
from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.data.planes import neighbourhood_mean
from guard.offline.denoisers.stand_in import StandIn


@dataclass(frozen=True)
class MovingAverage:
    """Denoiser that replaces each value by the mean of a window of an odd size, cut at the ends.

    The window is along time in series, along the features in vectors, a square in images.

    Source: the smoothing spatial filter of Liang et al. 2017, arXiv:1705.08378, section 4.2, with equal weights; theirs
    adapts to the image's entropy, which is left out.
    """

    name: ClassVar[str] = "moving_average"
    kinds: ClassVar[Kinds] = ALIKE
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    window: int = 3

    def __post_init__(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigError(f"denoiser 'moving_average': window = {self.window!r}; wanted an odd number from 3 on")

    def __call__(self, images: Tensor) -> Tensor:
        return neighbourhood_mean(images, self.window)
