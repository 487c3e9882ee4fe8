"""Harmless noise: what sensors, files and resizing do to an item's values, of a size that is drawn for each item.

Rule 1: a noisy item lies in the unit box and on the data's grid, as any other does.
Rule 2: what an item gets follows from its own values, the kind of noise and a seed: no batch or order changes it.
Rule 3: sizes of all kinds mean the same: noise of size s is as long in L2 as values moved evenly within -s and s are.

Example: at size 8/255, uniform noise moves each value by up to 8 levels, its root mean square is 8 / 1.73 = 4.6 levels;
Gaussian noise has a deviation of 4.6 levels; and of a mid-grey picture, salt and pepper take one pixel in 760.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid, Images, snap
from guard.offline.data.kind_names import KindName
from guard.offline.data.picture_shifts import MODES, from_bytes, to_bytes

MIN_LARGEST_SHARE = 8 / 255  # of the unit box: what the largest noise is at least
SMALLEST_FACTOR = 16  # how much smaller the smallest noise is than the largest, where there is no grid
UNIFORM_FACTOR = 3**0.5  # over the root mean square of uniform noise: its size
QUALITY_SHARES = (0.2, 0.95)  # of a JPEG file's highest quality
SCALE_FACTORS = (0.4, 0.9)  # of a side, to which an item is made smaller before it is made as large as it was

Draws: TypeAlias = np.random.Generator
Change: TypeAlias = Callable[[Images, float, Draws], Images]  # (unit-space item, size, draws) -> item, beside its grid


@dataclass(frozen=True)
class NoiseKind:
    """Kind of harmless noise."""

    name: str
    change: Change
    channels: tuple[int, ...] | None = None  # numbers of channels that it is defined for; None: any


def uniform(item: Images, size: float, draws: Draws) -> Images:
    return item + np.float32(size) * draws.uniform(-1, 1, item.shape).astype(np.float32)


def gaussian(item: Images, size: float, draws: Draws) -> Images:
    return item + np.float32(size / UNIFORM_FACTOR) * draws.standard_normal(item.shape, dtype=np.float32)


def salt_and_pepper(item: Images, size: float, draws: Draws) -> Images:
    """Set a few places to black or white in all channels, the last of them as far as the size asks for."""
    places = item.reshape(len(item), -1)  # [channel, place]
    ends = (draws.random(places.shape[1]) < 0.5).astype(np.float32)
    order = draws.permutation(places.shape[1])
    squares = np.square(ends - places.astype(np.float64)).sum(axis=0)[order]
    wanted = item.size * (size / UNIFORM_FACTOR) ** 2
    left = (wanted - np.append(0, squares.cumsum()[:-1])).clip(0)  # for this place and those after it
    parts = np.sqrt(np.divide(left, squares, out=np.zeros_like(squares), where=squares > 0)).clip(0, 1)
    moved = places.copy()
    moved[:, order] += parts.astype(np.float32) * (ends - places)[:, order]
    return moved.reshape(item.shape)


def jpeg_residue(item: Images, size: float, draws: Draws) -> Images:
    """Add what a JPEG file of some quality changes, made as large as `size`."""
    low, high = (np.log(100 * share) for share in QUALITY_SHARES)
    quality = round(float(np.exp(draws.uniform(low, high))))
    pixels = to_bytes(item).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if MODES[len(item)] == "L" else pixels).save(file, format="JPEG", quality=quality)
    read = np.asarray(Image.open(file))
    return grown(item, from_bytes(read[None] if read.ndim == 2 else read.transpose(2, 0, 1)), size)


def resize_residue(item: Images, size: float, draws: Draws) -> Images:
    """Add what is lost where a picture is made smaller and as large as it was, made as large as `size`."""
    height, width = item.shape[1:]
    factor = draws.uniform(*SCALE_FACTORS)
    small = (max(1, round(factor * width)), max(1, round(factor * height)))
    planes = [Image.fromarray(plane).resize(small, Image.Resampling.BILINEAR) for plane in item]
    back = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return grown(item, np.stack(back), size)


def resample_residue(item: Images, size: float, draws: Draws) -> Images:
    """Add what is lost where a series [channel, time] is sampled less often and read in between."""
    steps = item.shape[1]
    times = np.arange(steps)
    fewer = np.linspace(0, steps - 1, max(2, round(draws.uniform(*SCALE_FACTORS) * steps)))
    back = [np.interp(times, fewer, np.interp(fewer, times, channel)) for channel in item]
    return grown(item, np.stack(back).astype(np.float32), size)


def grown(item: Images, changed: Images, size: float) -> Images:
    """Return the item with the change made as large as `size`; one that changes nothing stays nothing."""
    residue = changed.astype(np.float64) - item
    root_mean_square = float(np.sqrt(np.square(residue).mean()))
    factor = size / UNIFORM_FACTOR / root_mean_square if root_mean_square > 1e-6 else 0.0
    return np.asarray(item + factor * residue, dtype=np.float32)


UNIFORM, GAUSSIAN = NoiseKind("uniform", uniform), NoiseKind("Gaussian", gaussian)
NOISES: Mapping[KindName, Sequence[NoiseKind]] = {
    "images": (
        UNIFORM,
        GAUSSIAN,
        NoiseKind("salt and pepper", salt_and_pepper),
        NoiseKind("JPEG residue", jpeg_residue, tuple(MODES)),
        NoiseKind("resize residue", resize_residue),
    ),
    "series": (
        UNIFORM,
        GAUSSIAN,
        NoiseKind("spikes", salt_and_pepper),
        NoiseKind("resampling residue", resample_residue),
    ),
    "vectors": (UNIFORM, GAUSSIAN),
    "tabular": (UNIFORM, GAUSSIAN),
}


def noises_of(kind: KindName, channels: int) -> list[NoiseKind]:
    """Return the kinds of noise that are defined for items of a kind with so many channels."""
    return [noise for noise in NOISES[kind] if noise.channels is None or channels in noise.channels]


@dataclass(frozen=True)
class Sizes:
    """Range of sizes, in unit space, from which each item's noise is drawn evenly in the logarithm."""

    low: float
    high: float

    @staticmethod
    def up_to(largest: float | None, grid: Grid) -> Sizes:
        """Return the sizes from one step of the grid up to the largest L-infinity budget of the attacks, or 8/255."""
        high = max(largest or 0.0, MIN_LARGEST_SHARE, 1 / grid if isinstance(grid, int) else 0.0)
        return Sizes(1 / grid if isinstance(grid, int) else high / SMALLEST_FACTOR, high)

    def at(self, place: float) -> float:
        """Return the size at a place from 0 to 1."""
        return float(self.low * (self.high / self.low) ** place)


def noisy(noise: NoiseKind, images: Images, sizes: Sizes, grid: Grid, seed: int) -> Images:
    """Return unit-space items [item, ...] with noise of this kind, each of a size of its own."""
    blank = np.zeros_like(images[:0])
    moved = np.concatenate([blank, *(one_noisy(noise, item, sizes, grid, seed)[None] for item in images)])
    if isinstance(grid, FeatureGrid):
        return grid.within(np.where(grid.moving, moved, images), images, None, "none")
    return snap(moved.clip(0, 1), grid)


def each_noisy(kind: KindName, images: Images, sizes: Sizes, grid: Grid, seed: int) -> Iterator[Images]:
    """Yield unit-space items [item, ...] with noise, one of the kinds after the other, in parts by kind."""
    kinds = noises_of(kind, images.shape[1])
    for place, noise in enumerate(kinds):
        yield noisy(noise, images[place :: len(kinds)], sizes, grid, seed)


def one_noisy(noise: NoiseKind, item: Images, sizes: Sizes, grid: Grid, seed: int) -> Images:
    content = hashlib.sha256(f"{seed} {noise.name} ".encode() + np.ascontiguousarray(item, dtype="<f4").tobytes())
    draws = np.random.default_rng(np.frombuffer(content.digest(), dtype=np.uint32))
    size = sizes.at(draws.random())
    moved = noise.change(item, size, draws)
    if isinstance(grid, FeatureGrid):  # whose numbers have ranges of their own
        moved = item + (moved - item) * grid.ranges.astype(np.float32)
    return moved
