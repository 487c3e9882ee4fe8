"""Quantisation of cosine coefficients: what JPEG discards of an image, without writing a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from guard.errors import ConfigError
from guard.offline.data.kind_names import ONLY_IMAGES, Kinds
from guard.offline.denoisers.bit_depth import round_through
from guard.offline.denoisers.stand_in import StandIn

BLOCK_PIXELS = 8
WHITE_GREY_STEPS = 255.0  # from black to white
MIDDLE_GREY_STEPS = 128.0  # from black, where brightness is counted from
# Steps of the 64 coefficients at quality 50, in grey levels: ITU-T T.81, annex K.1 and K.2.
LUMA_STEPS = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA_STEPS = np.full((BLOCK_PIXELS, BLOCK_PIXELS), 99)
CHROMA_STEPS[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
RGB_TO_YCC = np.array([  # ITU-T T.871
    [0.299, 0.587, 0.114],
    [-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772],
    [0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402],
])  # fmt: skip


@dataclass(frozen=True)
class DctQuantisation:
    """Denoiser that rounds the cosine coefficients of blocks of 8 x 8 pixels as JPEG of a `quality` does.

    Images of three channels are taken as red, green and blue and rounded as brightness and two colours, others channel
    by channel as brightness. A side that 8 does not divide repeats its last pixels. Unlike in a file, colours are of
    full size, and nothing is rounded to whole grey levels on the way.

    Source: JPEG compression as a defence, Dziugaite et al. 2016, arXiv:1608.00853; quality 75 as Guo et al. 2018,
    arXiv:1711.00117.
    """

    name: ClassVar[str] = "dct_quantisation"
    kinds: ClassVar[Kinds] = ONLY_IMAGES
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("rounding of cosine coefficients", "the identity (straight-through)"),
    )

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"denoiser 'dct_quantisation': quality = {self.quality!r}; wanted a number from 1 to 100")

    def __call__(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        rows, columns = (-size % BLOCK_PIXELS for size in (height, width))
        planes = pad(images, (0, columns, 0, rows), mode="replicate") * WHITE_GREY_STEPS
        mixing = RGB_TO_YCC if channels == 3 else np.eye(channels)
        colour, back = (torch.tensor(matrix, dtype=images.dtype) for matrix in (mixing, np.linalg.inv(mixing)))
        middle = torch.tensor(
            [MIDDLE_GREY_STEPS, 0, 0] if channels == 3 else [MIDDLE_GREY_STEPS] * channels, dtype=images.dtype
        )[:, None, None]
        tall, wide = height + rows, width + columns
        mixed = (colour @ planes.flatten(2)).reshape(-1, channels, tall, wide)
        rounded = self.rounded(mixed - middle) + middle
        restored = (back @ rounded.flatten(2)).reshape(-1, channels, tall, wide)
        return (restored[:, :, :height, :width] / WHITE_GREY_STEPS).clamp(0, 1)

    def rounded(self, planes: Tensor) -> Tensor:
        """Return planes of grey levels [item, channel, row, column] whose blocks' coefficients are whole steps."""
        channels, height, width = planes.shape[1:]
        down, across = height // BLOCK_PIXELS, width // BLOCK_PIXELS
        basis = torch.tensor(cosines(), dtype=planes.dtype)
        steps = torch.tensor(self.steps(channels), dtype=planes.dtype)
        blocks = planes.reshape(-1, channels, down, BLOCK_PIXELS, across, BLOCK_PIXELS).transpose(3, 4)
        found = basis @ blocks @ basis.T
        whole = round_through(found / steps) * steps
        return (basis.T @ whole @ basis).transpose(3, 4).reshape(-1, channels, height, width)

    def steps(self, channels: int) -> NDArray[np.float64]:
        """Return the steps of the coefficients in grey levels, [channel, 1, 1, 8, 8]."""
        percent = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = [LUMA_STEPS, CHROMA_STEPS, CHROMA_STEPS] if channels == 3 else [LUMA_STEPS] * channels
        scaled: NDArray[np.float64] = np.floor((np.stack(tables) * percent + 50) / 100).clip(1, 255)
        return scaled[:, None, None]


def cosines() -> NDArray[np.float64]:
    """Return the orthonormal cosine basis [frequency, pixel] of eight pixels."""
    frequency, pixel = np.mgrid[0:BLOCK_PIXELS, 0:BLOCK_PIXELS]
    basis: NDArray[np.float64] = np.sqrt(2 / BLOCK_PIXELS) * np.cos(
        np.pi * (2 * pixel + 1) * frequency / (2 * BLOCK_PIXELS)
    )
    basis[0] /= np.sqrt(2)
    return basis
