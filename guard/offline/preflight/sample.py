"""Sample of clean items that a training uses where there are more of them than memory and the minutes given allow.

Rule 1: items that fit into memory are all used; of others a stated number, first by content hash, so that neither
folders nor scores decide which.
Rule 2: calibration is never given fewer items than its rates ask for, whatever the minutes say.

Example: 25 minutes keep a fifth, 300 s, for passing clean items. At 20 ms an item these are 15,000; 1,600 of them are
fitted on, and half of the others, 6,700 each, calibrate and test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from guard.array_room import max_array_bytes
from guard.offline.crafting.plan import MAX_FAMILY_ITEMS, MIN_FAMILY_ITEMS
from guard.offline.crafting.stage import LEARNING
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.evidence.batches import batch_items
from guard.offline.evidence.gather import Gather
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.store import cache_key

CLEAN_SHARE = 0.2  # of the minutes, for passing clean items
UNSAID_SECONDS = 1500.0  # that a training is sized to where no minutes are given
MIN_LEARNING_ITEMS, MAX_LEARNING_ITEMS = 2 * MIN_FAMILY_ITEMS, 2 * MAX_FAMILY_ITEMS  # fitted and attacked
MAX_CALIBRATE_ITEMS, MIN_TEST_ITEMS, MAX_TEST_ITEMS = 20_000, 1_000, 10_000
WARNED_POINTS = 10  # a rate of fewer ranks among the calibration items than this rests on few of them
LEARNING_COPIES, ATTACK_COPIES = 3, 4  # of an item's values in memory while a guard is fitted
HALF_MEMORY_FACTOR = 2.5  # arrays of the largest size allowed that half of the memory holds
TIMED_TRIES = 3
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
    given = (job.minutes, job.clean_items, job.craft_items, job.reject_rate, job.recipe.raw, job.threads)
    hashes = "".join(np.sort(data.hashes).tolist())
    key = cache_key((classifier.spec.fingerprint, given, hashes), (__name__,))

    def choose() -> Sizes:
        if job.clean_items is not None:
            return shared_out(job.clean_items, available)
        return sized(job, available, math.prod(data.item_shape), seconds_an_item(job, classifier, data))

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


def sized(job: Job, available: Mapping[Split, int], item_values: int, item_s: float) -> Sizes:
    """Size the splits to minutes and memory; to read and pass an item of `item_values` takes `item_s` seconds."""
    copies = LEARNING_COPIES + ATTACK_COPIES * len(job.recipe.attacks)
    room = int(HALF_MEMORY_FACTOR * max_array_bytes() / (copies * item_values * np.dtype(np.float32).itemsize))
    learning = max(min(room, MAX_LEARNING_ITEMS), MIN_LEARNING_ITEMS, job.craft_items or 0)
    minutes = UNSAID_SECONDS / 60 if job.minutes is None else job.minutes
    affordable = CLEAN_SHARE * 60 * minutes / item_s - learning
    promised = math.ceil(WARNED_POINTS / job.reject_rate) - 1
    half = max(0, int(affordable / 2))
    wanted = {
        **{split: math.ceil(share * learning) for split, share in LEARNING.items()},
        Split.CALIBRATE: max(promised, min(half, MAX_CALIBRATE_ITEMS)),
        Split.TEST: max(MIN_TEST_ITEMS, min(half, MAX_TEST_ITEMS)),
    }
    return {split.value: min(wanted[split], available[split]) for split in Split}


def seconds_an_item(job: Job, classifier: Classifier, data: Dataset) -> float:
    """Measure the seconds in which an item is read and its evidence is gathered, in torch and once more in programs."""
    programs = job.recipe.programs([tap.name for tap in classifier.taps])
    gather = Gather(classifier, [need for detectors in programs.values() for one in detectors for need in one.needs])
    items = batch_items(data.item_shape)
    data.images[:items]  # opens what has to be opened
    seconds = []
    for batch in range(TIMED_TRIES):
        began = time.perf_counter()
        images = torch.from_numpy(data.images[batch * items : (batch + 1) * items])
        between = time.perf_counter()
        if not len(images):
            break
        with torch.no_grad():
            gather(images)
        seconds.append((between - began + 2 * (time.perf_counter() - between)) / len(images))
    return min(seconds)


def line(job: Job, sizes: Sizes, items: int) -> str:
    """State which part of the items is used, and why."""
    used = sum(sizes.values())
    listed = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    minutes = UNSAID_SECONDS / 60 if job.minutes is None else job.minutes
    why = "as --clean-items says" if job.clean_items is not None else f"sized to --minutes {minutes:g} and the memory"
    return f"{used:,} of {items:,} items are used, {why}: {listed}; --clean-items N takes another number"
