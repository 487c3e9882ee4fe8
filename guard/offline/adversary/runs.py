"""Runs of the adaptive attack: one method against one aim within a budget, in parts side by side, kept in files.

Rule 1: a part's file is named by all that it follows from; an interrupted run repeats no part that was finished.
Rule 2: the number of parts is fixed, so that a result does not depend on the machine's cores.

How it works. A run takes every fourth item into the same part, attacks the parts on threads (one per core at most),
keeps each part's result in a file, and puts the items back into their order.

For example 100 items, two methods and 25 steps. Each method has four parts of 25 items: part 0 holds the items 0, 4,
... 96, part 1 the items 1, 5, ... 97. With seed 0 the parts draw from the seeds 0, 1, 2 and 3. Two methods leave 2 x 4
files (NAME-METHOD-PART-KEY.npz). A method begins twice (at the static attack's result and at a random point), so it
takes at most 100 x 2 x 25 = 5,000 item steps, `several_targets` as many for each class that it descends towards. A run
that is interrupted after three files computes the other five.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from guard.offline.adversary.descent import METHODS, AdaptiveResult, Known, adaptive, beats, descents_of
from guard.offline.adversary.directions import Method
from guard.offline.adversary.guides import Guides
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Grid
from guard.offline.work.parallel import Stop, cores, side_by_side
from guard.offline.work.store import ResultStore, cache_key

MAX_GUIDE_ITEMS = 200  # clean items, at most, that feature matching chooses from


# What a run's result follows from: the descent, and the guard's risk with everything in it that is differentiated.
CODE = (__name__, "guard.offline.adversary.excess", "guard.offline.detectors.table")
START_POINTS = 2  # descents of each method: from the static attack's result and from a random point
ITEM_PARTS = 4  # into which the items are divided

StepReporter: TypeAlias = Callable[[object, int, int], None]  # (what runs, item steps done, item steps at most)


@dataclass(frozen=True)
class Aim:
    """Target of a run: the guard or detector that is attacked, and the methods that are tried against it."""

    name: str
    known: Known
    methods: tuple[Method, ...] = METHODS
    guides: Guides | None = None  # for feature matching alone


@dataclass(frozen=True)
class Adversary:
    """Attack on these clean items, which the model classifies correctly, with so many steps."""

    items: Dataset
    steps: int
    seed: int
    grid: Grid
    identity: str  # digest of the guard attacked and of the guides
    work: ResultStore
    device: str = "cpu"  # device that `Aim.known` and its guides are on

    def attack(self, aim: Aim, start: NDArray[np.float32], budget: float, shown: StepReporter) -> MethodResults:
        """Run every method of the aim, each part read from its file, or computed and kept."""
        return MethodResults({m: self.run(aim, m, start, budget, shown) for m in aim.methods})

    def run(
        self, aim: Aim, method: Method, start: NDArray[np.float32] | None, budget: float, shown: StepReporter
    ) -> AdaptiveResult:
        """Run one method, each part read from its file, or computed and kept; without `start` from one random point."""
        key, starts = self.identify(aim.name, method, start, budget), 1 if start is None else START_POINTS
        total = len(self.items) * starts * descents_of(method) * self.steps
        stop, counter = Stop(), Counter(f"{aim.name}, {method}", total, shown)
        names = [field.name for field in fields(AdaptiveResult)]

        def part(number: int) -> AdaptiveResult:
            mine = slice(number, None, ITEM_PARTS)

            def make() -> dict[str, NDArray[Any]]:
                found = self.part(aim, method, mine, start, budget, StepCounter(stop, counter))
                return {name: getattr(found, name).numpy() for name in names}

            kept = self.work.arrays(f"{aim.name}-{method}-{number}", key, make, names=names)
            return AdaptiveResult(**{name: torch.from_numpy(kept[name]) for name in names})

        return in_parts(part, len(self.items), self.workers, stop)

    def part(
        self,
        aim: Aim,
        method: Method,
        mine: slice,
        start: NDArray[np.float32] | None,
        budget: float,
        heard: Callable[[int], None] | None,
    ) -> AdaptiveResult:
        here = partial(torch.as_tensor, device=self.device)
        found = adaptive(
            aim.known,
            here(self.items.images[mine]),
            here(self.items.labels[mine]),
            budget=budget,
            steps=self.steps,
            grid=self.grid,
            method=method,
            generator=torch.Generator().manual_seed(ITEM_PARTS * self.seed + mine.start),
            start=None if start is None else here(start[mine]),
            guides=aim.guides,
            heard=heard,
        )
        return AdaptiveResult(*(getattr(found, f.name).cpu() for f in fields(AdaptiveResult)))

    def tried(self, aim: Aim, method: Method, budget: float, number: int) -> AdaptiveResult:
        """Attack one part from a random point, without showing progress and without keeping the result."""
        return self.part(aim, method, slice(number, None, ITEM_PARTS), None, budget, None)

    @property
    def workers(self) -> int:
        """Number of parts attacked at once: one per core on a CPU, one alone on a GPU."""
        return cores() if self.device == "cpu" else 1

    def identify(self, aim: str, method: Method, start: NDArray[np.float32] | None, budget: float) -> str:
        """Return the cache key of a run: SHA-256 (hex) over everything that its result follows from."""
        settings = (self.identity, aim, method, budget, self.steps, self.seed, self.grid, self.device)
        digest = hashlib.sha256(
            repr((settings, self.items.labels.tolist(), None if start is None else start.shape)).encode()
        )
        for images in (self.items.images[:], *(() if start is None else (start,))):
            digest.update(np.ascontiguousarray(images, dtype="<f4").tobytes())
        return cache_key(digest.hexdigest(), CODE)


@dataclass(frozen=True)
class MethodResults:
    """Results of each method on the same items."""

    by_method: Mapping[Method, AdaptiveResult]

    @property
    def winners(self) -> tuple[Method, ...]:
        """Method that found each item's best point; the first named of equals."""
        return self.chosen[0]

    @property
    def best(self) -> AdaptiveResult:
        return self.chosen[1]

    @property
    def chosen(self) -> tuple[tuple[Method, ...], AdaptiveResult]:
        (method, best), *others = self.by_method.items()
        winners = [method] * len(best.fooled)
        for method, found in others:
            ahead = beats(found, best)
            best = best.where(ahead, found)
            winners = [method if new else old for old, new in zip(winners, ahead.tolist(), strict=True)]
        return tuple(winners), best


def in_parts(part: Callable[[int], AdaptiveResult], items: int, workers: int, stop: Stop) -> AdaptiveResult:
    """Compute all parts on `workers` threads, and put their items back into order.

    Each part takes one core: small convolutions gain less from sharing several.
    """
    count = min(ITEM_PARTS, items)
    found: Sequence[AdaptiveResult] = side_by_side([partial(part, number) for number in range(count)], workers, stop)
    order = torch.cat([torch.arange(number, items, ITEM_PARTS) for number in range(count)]).argsort()
    return AdaptiveResult(*(torch.cat([getattr(r, f.name) for r in found])[order] for f in fields(AdaptiveResult)))


@dataclass
class Counter:
    """Counter of the item steps that all parts have done together, reported as it grows."""

    what: str
    total: int
    shown: StepReporter
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, items: int) -> None:
        with self.lock:
            self.done += items
            self.shown(self.what, self.done, self.total)


@dataclass(frozen=True)
class StepCounter:
    """Callback of a part that counts its steps, and ends it once the work is to end."""

    stop: Stop
    counter: Counter

    def __call__(self, items: int) -> None:
        self.stop.look()
        self.counter.add(items)
