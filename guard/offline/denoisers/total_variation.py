"""Total variation: the image of least total variation near the item, which keeps edges and removes grain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from guard.errors import ConfigError
from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.data.planes import as_planes
from guard.offline.denoisers.stand_in import StandIn

STEP_SIZE = 0.25  # of the dual ascent, in pixels squared: up to 1/4 it converges in practice (Chambolle 2004)
MIN_SQUARED_SLOPE = 1e-12  # below any grain: the length of a slope has no derivative at 0


@dataclass(frozen=True)
class TotalVariation:
    """Denoiser that comes near the image u of least total variation + |u - x|^2 / (2 weight), channel by channel.

    `steps` of Chambolle's dual ascent are made, so many for every item: a served program has no loop that ends early.
    Series vary along time, vectors along the features.

    Source: Chambolle 2004 (doi:10.1023/B:JMIV.0000011325.36760.1e), as an input transformation after Guo et al. 2018,
    arXiv:1711.00117, whose random dropping of pixels and whose solver are left out.
    """

    name: ClassVar[str] = "total_variation"
    kinds: ClassVar[Kinds] = ALIKE
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    weight: float = 0.03
    steps: int = 10

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"denoiser 'total_variation': weight = {self.weight!r}; wanted a number above 0")
        if self.steps < 1:
            raise ConfigError(f"denoiser 'total_variation': steps = {self.steps!r}; wanted at least 1")

    def __call__(self, images: Tensor) -> Tensor:
        planes = as_planes(images)
        down, across = slopes(planes * 0)
        for _ in range(self.steps):
            rise, run = slopes(divergence(down, across) - planes / self.weight)
            brake = 1 + STEP_SIZE * (rise.square() + run.square() + MIN_SQUARED_SLOPE).sqrt()
            down, across = (down + STEP_SIZE * rise) / brake, (across + STEP_SIZE * run) / brake
        cleaned: Tensor = planes - self.weight * divergence(down, across)
        return cleaned.clamp(0, 1).reshape(images.shape)


def slopes(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the difference to the next row and to the next column, 0 at the last."""
    down = pad(planes[:, :, 1:] - planes[:, :, :-1], (0, 0, 0, 1))
    return down, pad(planes[..., 1:] - planes[..., :-1], (0, 1))


def divergence(down: Tensor, across: Tensor) -> Tensor:
    """Return the divergence of a field whose last row and column are 0: minus the adjoint of `slopes`."""
    above, before = pad(down[:, :, :-1], (0, 0, 1, 0)), pad(across[..., :-1], (1, 0))
    return down - above + across - before
