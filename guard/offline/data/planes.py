"""Items of any kind as planes [item, channel, row, column], so that neighbours are found the same way everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def as_planes(items: Tensor) -> Tensor:
    """View items as planes [item, channel, row, column]; time, and the features of a vector, run along one row."""
    if items.ndim == 2:
        return items[:, None, None, :]
    return items[:, :, None, :] if items.ndim == 3 else items


def place_axes(items: Tensor) -> tuple[int, ...]:
    """Return the axes of a batch along which values have neighbours in space or time; none of vectors."""
    return tuple(range(2, items.ndim))


def window_of(items: Tensor, size: int) -> tuple[int, int]:
    """Return the rows and columns of a window of a size on the items' planes; a line's window is one row high."""
    return (size if items.ndim == 4 else 1, size)


def neighbourhood_mean(items: Tensor, size: int) -> Tensor:
    """Return the mean of each value's window of an odd size in space, time or along the features, cut at the ends."""
    window = window_of(items, size)
    padding = tuple(side // 2 for side in window)
    mean: Tensor = avg_pool2d(as_planes(items), window, stride=1, padding=padding, count_include_pad=False)
    return mean.reshape(items.shape)


def reflected_around(planes: Tensor, window: tuple[int, int]) -> Tensor:
    """Return planes [item, channel, row, column] with the border that windows of so many rows and columns read.

    Borders are reflected, over and over where a window is larger than the plane, as numpy does.
    """
    reaches = [((size - 1) // 2, size // 2) for size in window]
    if all(after < size for (_, after), size in zip(reaches, planes.shape[2:], strict=True)):
        return pad(planes, (*reaches[1], *reaches[0]), mode="reflect")
    for axis, reach in enumerate(reaches, start=2):
        line = np.pad(np.arange(planes.shape[axis]), reach, mode="reflect")
        planes = planes.index_select(axis, torch.from_numpy(line))
    return planes
