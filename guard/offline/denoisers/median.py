"""Median of a small window, which removes lone pixels and keeps edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.data.planes import as_planes, reflected_around
from guard.offline.denoisers.stand_in import StandIn


@dataclass(frozen=True)
class Median:
    """Denoiser that replaces each pixel by the median of its `window` x `window` neighbourhood, borders reflected.

    A window of even size reaches further to the lower right, and takes the lower of the two middle values, as scipy's
    does not; both are conventions. Series use a window along time, vectors along the features.

    Source: Xu et al. 2018, arXiv:1704.01155, section III-B.
    """

    name: ClassVar[str] = "median"
    kinds: ClassVar[Kinds] = ALIKE  # what one feature of a table is says nothing of the next
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("median", "the pixel that is the median, through minima and maxima"),
    )

    window: int = 2

    def __call__(self, images: Tensor) -> Tensor:
        maps = as_planes(images)
        height, width = maps.shape[2:]
        tall, wide = (self.window if size > 1 else 1 for size in (height, width))
        padded = reflected_around(maps, (tall, wide))
        shifted = [padded[:, :, i : i + height, j : j + width] for i in range(tall) for j in range(wide)]
        return lower_median(shifted).reshape(images.shape)


def lower_median(values: list[Tensor]) -> Tensor:
    """Return the elementwise lower median of equally shaped tensors, by a pruned network of minima and maxima.

    Elementwise minima and maxima are what runtimes do fastest, and they have gradients almost everywhere.
    """
    wanted = (len(values) - 1) // 2
    line = list(values)
    for place in range(wanted + 1):  # after each sweep the smallest of the rest stands at `place`
        for other in range(place + 1, len(line)):
            line[place], line[other] = torch.minimum(line[place], line[other]), torch.maximum(line[place], line[other])
    return line[wanted]
