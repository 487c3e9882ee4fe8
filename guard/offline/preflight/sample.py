"""Sample of clean items that a training uses where there are more of them than memory allows.

Rule 1: items that fit into memory are all used; of others a stated number, first by content hash, so that neither
folders nor scores decide which.
Rule 2: how many follows from recipe and rates, never from measured speed; calibration has what its rates ask for.

Example: a recipe that wants 1,000 verified items an attack is fitted on 2,000 of 100,000 clean items where memory holds
them; 5,000 calibrate, or 9,999 at a rate of 0.1 %, and 3,000 test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from guard.array_room import max_array_bytes
from guard.offline.crafting.plan import MIN_FAMILY_ITEMS
from guard.offline.crafting.stage import LEARNING
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.store import cache_key

MIN_LEARNING_ITEMS, LEARNING_FACTOR = 2 * MIN_FAMILY_ITEMS, 2  # fitted and attacked: of the items a recipe wants
CALIBRATE_ITEMS, TEST_ITEMS = 5_000, 3_000  # with which ranks of 0.1 % are told apart
WARNED_POINTS = 10  # a rate of fewer ranks among the calibration items than this rests on few of them
LEARNING_COPIES, ATTACK_COPIES = 3, 4  # of an item's values in memory while a guard is fitted
HALF_MEMORY_FACTOR = 2.5  # arrays of the largest size allowed that half of the memory holds
Sizes = Mapping[str, int]  # items by split


@dataclass(frozen=True)
class Sample:
    """The clean items that a training uses, and a line that states them; None where all are used."""

    data: Dataset
    line: str | None = None


def sample_of(job: Job, classifier: Classifier, data: Dataset, kept: WorkDirectory | None) -> Sample:
    """Choose the items that a job uses; sizes that follow from measured speed are kept in a work directory."""
    if not data.is_on_disk:
        return Sample(data)
    available = {split: len(data.places(split)) for split in Split}
    given = (job.clean_items, job.craft_items, job.reject_rate, job.recipe.raw)
    hashes = "".join(np.sort(data.hashes).tolist())
    key = cache_key((classifier.spec.fingerprint, given, hashes), (__name__,))

    def choose() -> Sizes:
        if job.clean_items is not None:
            return shared_out(job.clean_items, available)
        return sized(job, available, math.prod(data.item_shape))

    sizes = choose() if kept is None else kept.choices.choice("sample", key, choose)
    chosen = np.sort(np.concatenate([data.places(split)[: sizes[split.value]] for split in Split]))
    some = data.take(chosen)
    if not isinstance(some.images, np.ndarray) and some.images.is_swept:
        some = some.in_memory()  # once, into an unnamed file: rows far from each other are slow to find
    return Sample(some, line(job, sizes, len(data)))


def shared_out(items: int, available: Mapping[Split, int]) -> Sizes:
    """Share a number of items out among the splits, as all items are."""
    share = items / max(1, sum(available.values()))
    return {split.value: min(count, math.ceil(count * share)) for split, count in available.items()}


def sized(job: Job, available: Mapping[Split, int], item_values: int) -> Sizes:
    """Size the splits to recipe, rates and memory, for items of so many values."""
    copies = LEARNING_COPIES + ATTACK_COPIES * len(job.recipe.attacks)
    room = int(HALF_MEMORY_FACTOR * max_array_bytes() / (copies * item_values * np.dtype(np.float32).itemsize))
    learning = max(min(room, LEARNING_FACTOR * job.recipe.items), MIN_LEARNING_ITEMS, job.craft_items or 0)
    promised = math.ceil(WARNED_POINTS / job.reject_rate) - 1
    wanted = {
        **{split: math.ceil(share * learning) for split, share in LEARNING.items()},
        Split.CALIBRATE: max(promised, CALIBRATE_ITEMS),
        Split.TEST: TEST_ITEMS,
    }
    return {split.value: min(wanted[split], available[split]) for split in Split}


def line(job: Job, sizes: Sizes, items: int) -> str:
    """State which part of the items is used, and why."""
    used = sum(sizes.values())
    listed = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    why = "as --clean-items says" if job.clean_items is not None else "by the recipe, the rates and the memory"
    return f"{used:,} of {items:,} items are used, {why}: {listed}; --clean-items N takes another number"
