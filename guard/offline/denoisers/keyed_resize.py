"""Keyed resizing and padding: an item is shrunk a little and put back somewhere, by a number that its values decide.

How it works. A key draws `count` patterns, each a smaller size and a place for every axis. A pattern is a matrix an
axis, so that items keep their size. Which pattern an item gets is a number from a keyed hash of its values, in whole
numbers of 64 bits, which torch and ONNX Runtime compute exactly alike: the same item always gets the same pattern, and
a verdict can be reproduced. For example 32 x 32 pixels and a smallest share of 0.8: 25 to 31 pixels high, and 0 to 7
rows from the top; likewise across.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.data.kind_names import IN_PLACES, Kinds
from guard.offline.data.planes import as_planes
from guard.offline.denoisers.stand_in import StandIn

HASH_STEPS = 255  # of the unit box: values are rounded to them before they are hashed
HASH_DIVISOR = 2**31 - 1  # sums of 2**20 values of 255 steps by weights below it fit into 63 bits


@dataclass(frozen=True)
class KeyedResize:
    """Denoiser that resizes an item to a smaller size and pads it back with its border, both by a keyed hash of it.

    The key is a setting, written into the bundle: it counts as known to the attacker, whose derivative is the mean over
    all patterns.

    Source: Xie et al. 2018, arXiv:1711.01991. Theirs draws anew at every request, enlarges 299 pixels to at most 331,
    and pads with zeros; a model that is guarded keeps its input's size, and ours pads with what lies at the border. The
    expectation over transformations breaks the original: Athalye et al. 2018, arXiv:1802.00420.
    """

    name: ClassVar[str] = "keyed_resize"
    kinds: ClassVar[Kinds] = IN_PLACES
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("resizing and place by a keyed hash", "the mean over all resizings and places that the key allows"),
    )

    key: int = 0
    count: int = 16
    smallest: float = 0.8  # share of a side that is left at least

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"denoiser 'keyed_resize': count = {self.count!r}; wanted at least 2 patterns")
        if not 0 < self.smallest < 1:
            raise ConfigError(f"denoiser 'keyed_resize': smallest = {self.smallest!r}; wanted between 0 and 1")

    def __call__(self, images: Tensor) -> Tensor:
        planes = as_planes(images)
        down, across = (torch.from_numpy(self.matrices(size, axis)) for axis, size in enumerate(planes.shape[2:]))
        down, across = down.to(planes.dtype), across.to(planes.dtype)
        number = self.numbers(planes.detach())
        resized = down[number][:, None] @ planes @ across[number][:, None].transpose(2, 3)
        if images.requires_grad:
            mean = torch.stack([one @ planes @ other.T for one, other in zip(down, across, strict=True)]).mean(dim=0)
            resized = resized.detach() + (mean - mean.detach())
        return resized.clamp(0, 1).reshape(images.shape)

    def numbers(self, items: Tensor) -> Tensor:
        """Return which pattern each item gets [item], from 0 on."""
        steps = torch.round(items.flatten(1) * HASH_STEPS).to(torch.int64)
        weights = torch.from_numpy(self.drawn("hash", steps.shape[1]) % HASH_DIVISOR)
        mixed = (steps * weights).sum(dim=1) % HASH_DIVISOR
        return mixed * mixed % HASH_DIVISOR % self.count  # squared: a sum alone moves by the weight of what is changed

    def matrices(self, size: int, axis: int) -> NDArray[np.float64]:
        """Return each pattern's matrix of an axis [pattern, size, size]; every row adds up to one."""
        if size == 1:
            return np.ones((self.count, 1, 1))
        least = max(1, min(int(self.smallest * size), size - 1))
        sizes = least + self.drawn(f"size {axis}", self.count) % (size - least)
        offsets = self.drawn(f"place {axis}", self.count) % (size - sizes + 1)
        return np.stack([pattern(size, int(to), int(at)) for to, at in zip(sizes, offsets, strict=True)])

    def drawn(self, what: str, count: int) -> NDArray[np.int64]:
        """Return numbers from 0 to below 2**32 that the key decides, whatever library is installed."""
        stream = hashlib.shake_256(f"{self.key} {what}".encode()).digest(4 * count)
        return np.frombuffer(stream, dtype="<u4").astype(np.int64)


def pattern(size: int, to: int, at: int) -> NDArray[np.float64]:
    """Return the matrix [size, size] that shrinks a line to `to` values, linearly, and puts them at `at`."""
    inner = (np.arange(size) - at).clip(0, to - 1)  # the border repeats
    centre = ((inner + 0.5) * size / to - 0.5).clip(0, size - 1)
    below = np.floor(centre).astype(np.int64)
    above, share = np.minimum(below + 1, size - 1), centre - below
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), below), 1 - share)
    np.add.at(matrix, (np.arange(size), above), share)
    return matrix
