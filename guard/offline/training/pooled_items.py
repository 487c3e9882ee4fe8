"""Items of several crafted sets in one split: attacked ones, and beside them noisy ones that no attack has touched.

Rule 1: large items are most of a training's memory: what is put together is held once, and one part beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from guard.manifest import InputSpec
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images, grid_for
from guard.offline.data.harmless_noise import Sizes, each_noisy
from guard.offline.data.input_kind import kind_for, kind_of
from guard.offline.data.shift import shifted
from guard.offline.data.splits import Split, members

NOISE_COPIES = 2  # of each clean item that heads or fusion are fitted on


def pool(
    crafted: Sequence[CraftedSet], data: Dataset, split: Split, spec: InputSpec, seed: int
) -> tuple[Attacked[Images], Images]:
    """Return the attacked items of all sets in one split, and beside them noise and items that nature has changed.

    Noise is what is as large as the attacks, and each kind of `harmless_noise` in all sizes up to the largest of them.
    """
    clean = data.part(split).images[:]
    budgets = (found.budget or 0.0 for found in crafted if found.norm == "linf")
    sizes = Sizes.up_to(max(budgets, default=None), grid_for(spec))
    masks = [members(found.hashes, data.splits, split) for found in crafted]
    own = (found.noise[mask] for found, mask in zip(crafted, masks, strict=True))
    harmless = chain(changed(clean, spec.grid), harmless_noise(clean, spec, sizes, seed))
    most = sum(int(mask.sum()) for mask in masks) + (1 + NOISE_COPIES) * len(clean)
    return attacked_items(crafted, data, split), joined(chain(own, harmless), most, data.item_shape)


def attacked_items(crafted: Sequence[CraftedSet], data: Dataset, split: Split) -> Attacked[Images]:
    """Return the attacked items of all sets in one split."""
    masks = [members(found.hashes, data.splits, split) for found in crafted]
    counts = [int(mask.sum()) for mask in masks]
    parts = (found.attacked[mask] for found, mask in zip(crafted, masks, strict=True))
    names = (found.attack for found, count in zip(crafted, counts, strict=True) for _ in range(count))
    return Attacked(joined(parts, sum(counts), data.item_shape), tuple(names))


def joined(parts: Iterable[Images], most: int, shape: tuple[int, ...]) -> Images:
    """Return the items of all parts, `most` at most, of which no more than one part is in memory beside the result."""
    items, count = np.zeros((most, *shape), dtype=np.float32), 0
    for part in parts:
        items[count : count + len(part)] = part
        count += len(part)
    return items[:count]


def harmless_noise(clean: Images, spec: InputSpec, sizes: Sizes, seed: int) -> Iterator[Images]:
    """Yield clean items with noise of every kind, `NOISE_COPIES` of each item, by different kinds."""
    grid, kind = grid_for(spec), kind_for(spec)
    for shift in range(NOISE_COPIES):
        yield from each_noisy(kind.name, np.roll(clean, shift, axis=0), sizes, grid, seed)


def changed(images: Images, grid: int | None) -> Iterator[Images]:
    """Yield clean items as their kind's harmless changes leave them, each item by one of these in turn."""
    shifts = kind_of(images.shape[1:]).negatives
    for place, shift in enumerate(shifts):
        if (found := shifted(shift, images[place :: len(shifts)], grid)) is not None:
            yield found
