"""The rows of unattacked inputs: how often the guard takes them for attacked, by kind and by class.

Rule 1: a promise covers clean items alone. Noise, off-grid and shifted items are measured, and nothing is promised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from guard.cascade import Readings
from guard.items_on_disk import Items
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Grid, off_grid
from guard.offline.data.harmless_noise import Sizes, noises_of, noisy
from guard.offline.data.input_kind import InputKind, kind_for
from guard.offline.data.shift import shifted
from guard.offline.evaluation.effort import Effort
from guard.offline.evaluation.forecast import seconds_to_read
from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import HARMLESS, NOISE, OFF_GRID, ClassRow, CleanRow
from guard.offline.findings.intervals import Promise, Rate, caught_at, rejections_band
from guard.offline.programs.opened_guard import OpenedGuard, Rates
from guard.offline.programs.read import read
from guard.offline.work.store import cache_key

MAX_OFF_GRID_ITEMS = 1_000  # of items that do not fit into memory
MAX_NOISY_ITEMS, NOISE_SIZE_POINTS = 300, 4  # items with noise of each kind and size, and so many sizes
SHIFT_SHARE, MIN_SHIFTED_ITEMS = 0.05, 100  # of the time left; and items, whatever it takes


RIGHT, WRONG = "the model is right", "the model is wrong"


def clean_rows(
    subject: OpenedGuard, clean: Readings, harmless: Unattacked, promises: Sequence[Promise]
) -> tuple[CleanRow, ...]:
    """Return the rows of clean items, which the promise covers, and of noisy and off-grid ones, which it does not."""
    cascade, rates = subject.cascade, subject.rates

    def row(name: str, images: NDArray[np.float32], *, part: bool = False) -> CleanRow:
        found = clean_row(name, read(cascade, images), promises, rates, promised_on=None)
        return replace(found, part=part)

    rows = [clean_row("clean", clean, promises, rates, promised_on=cascade.calibration.items)]
    if len(harmless.noise):
        rows.append(row(NOISE, harmless.noise))
    rows += [row(f"as large as {label}", noise, part=True) for label, noise in harmless.as_large.items() if len(noise)]
    if harmless.by_size:
        rows.append(row(HARMLESS, np.concatenate(list(harmless.by_size.values()))))
    rows += [row(label, noise, part=True) for label, noise in harmless.by_size.items()]
    if harmless.off_grid is not None:
        rows.append(row(OFF_GRID, harmless.off_grid))
    return tuple(rows)


def clean_row(
    name: str,
    readings: Readings,
    promises: Sequence[Promise],
    rates: Rates,
    *,
    promised_on: int | None,
    accuracy: Rate | None = None,
) -> CleanRow:
    """Return the row of one kind of unattacked items.

    `promised_on` is the number of clean items that the promise rests on, where one covers the row.
    """
    p, made = readings.p_value, [promise for promise in promises if promise.reason is None]
    covered = promised_on is not None
    count = promised_on or 0
    return CleanRow(
        name,
        rejected=Rate.of(p <= rates.reject),
        flagged=Rate.of(p <= rates.flag),
        reject_band=rejections_band(rates.reject, count, len(p)) if covered else None,
        flag_band=rejections_band(rates.flag, count, len(p)) if covered else None,
        alarms=caught_at(promises, p),
        bands={promise.rate: rejections_band(promise.rate, count, len(p)) for promise in made} if covered else {},
        accuracy=accuracy,
    )


@dataclass(frozen=True, eq=False)
class Unattacked:
    """Unattacked items that are not as clean items are: noise and off-grid ones; unit space [item, ...]."""

    noise: NDArray[np.float32]  # snapped, as large as all the attacks
    as_large: Mapping[str, NDArray[np.float32]]  # by attack: the part of it that is as large as that one
    by_size: Mapping[str, NDArray[np.float32]]  # clean items with noise of each kind and size, by name
    off_grid: NDArray[np.float32] | None  # clean items beside their grid, where they have one


def unattacked(
    images: Items, crafted: Mapping[str, CraftedSet], kind: InputKind, sizes: Sizes, grid: Grid, seed: int
) -> Unattacked:
    """Collect the crafted sets' noise, make other noise, and put the clean images beside their grid if they have one.

    Of images that lie on disk only the first are put there. Noise of each kind and size is made of the first items.
    """
    some = images[:MAX_NOISY_ITEMS]
    images = images if isinstance(images, np.ndarray) else images[:MAX_OFF_GRID_ITEMS]
    blank = np.zeros_like(images[:0])
    off = off_grid(images, grid, torch.Generator().manual_seed(seed))
    as_large = {label: found.noise for label, found in crafted.items()}
    return Unattacked(
        np.concatenate([blank, *as_large.values()]), as_large, by_size(some, kind, sizes, grid, seed), off
    )


def by_size(
    images: NDArray[np.float32], kind: InputKind, sizes: Sizes, grid: Grid, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Return items with noise of each kind of a few sizes, the largest first halved and halved again, by name."""
    halves = [sizes.high / 2**number for number in reversed(range(NOISE_SIZE_POINTS))]
    steps = grid if isinstance(grid, int) else None
    return {
        f"{noise.name} noise {spoken_budget(size, steps)}": noisy(noise, images, Sizes(size, size), grid, seed)
        for noise in noises_of(kind.name, images.shape[1])
        for size in halves
        if size >= sizes.low - 1e-9
    }


def shift_rows(
    subject: OpenedGuard, held_out: Dataset, promises: Sequence[Promise], items: int
) -> tuple[tuple[CleanRow, ...], str]:
    """Return the rows of the first `items` test items, shifted each way; or none, and the reason."""
    images, labels = held_out.images[:items], held_out.labels[:items]
    kind, rows = kind_for(subject.cascade.spec), []
    for shift in kind.shifts:
        moved = shifted(shift, images, subject.cascade.spec.grid)
        if moved is not None:
            readings = read(subject.cascade, moved, answering=subject.classifier.answering)
            right = Rate.of(readings.prediction == labels)
            rows.append(clean_row(shift.name, readings, promises, subject.rates, promised_on=None, accuracy=right))
    return tuple(rows), kind.shift_note


def class_rows(
    clean: Readings, labels: NDArray[np.int64], names: Sequence[str], promises: Sequence[Promise]
) -> tuple[ClassRow, ...]:
    """Return rows of the items that the model has right, of those it has wrong, and of each true class, by number."""
    right = clean.prediction == labels

    def row(name: str, members: NDArray[np.bool_], true_class: int | None = None) -> ClassRow:
        return ClassRow(name, Rate.of(right[members]), caught_at(promises, clean.p_value[members]), true_class)

    present = [int(one) for one in np.unique(labels)]
    return (row(RIGHT, right), row(WRONG, ~right), *(row(class_name(c, names), labels == c, c) for c in present))


def class_name(number: int, names: Sequence[str]) -> str:
    """Return the name that the bundle has for a class, or its number."""
    return names[number] if number < len(names) else f"class {number}"


def shift_items(subject: OpenedGuard, held_out: Dataset, effort: Effort) -> int:
    """Choose how many test items are shifted, for a share of the time left; a size chosen before is kept to."""
    wanted = min(effort.shift_items, len(held_out.images))
    shifts = kind_for(subject.cascade.spec).shifts
    if effort.deadline is None or not shifts:
        return wanted
    hashes = hashlib.sha256("".join(held_out.hashes.tolist()).encode()).hexdigest()
    asked = (subject.identity, hashes, wanted)

    def choose() -> int:
        affordable = SHIFT_SHARE * effort.seconds_left() / (len(shifts) * seconds_to_read(subject.cascade, held_out))
        return int(min(wanted, max(affordable, MIN_SHIFTED_ITEMS)))

    return effort.work.choices.choice("shifts", cache_key(asked, (__name__,)), choose)
