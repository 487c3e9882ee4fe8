"""Runs of the adaptive attack: a method against an aim within a budget, in parts beside each other, kept in files.

Rule 1: a part's file is named by all that it follows from; an interrupted run repeats no part that was finished.
Rule 2: the number of parts is fixed, so that a result does not depend on the machine's cores.
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

from guard.offline.adversary.descent import METHODS, AdaptiveResult, Known, adaptive, beats
from guard.offline.adversary.directions import Method
from guard.offline.adversary.guides import Guides
from guard.offline.data.dataset import Dataset
from guard.offline.work.parallel import Stop, cores, side_by_side
from guard.offline.work.store import ResultStore, cache_key

GUIDES = 200  # clean items, at most, that feature matching chooses from


# What a run's result follows from: the descent, and the guard's risk with everything in it that is differentiated.
CODE = (__name__, "guard.offline.adversary.excess", "guard.offline.detectors.table")
STARTS = 2  # of each method: the static attack's result and a random point
PARTS = 4  # that the items are attacked in

Shown: TypeAlias = Callable[[object, int, int], None]  # what, item steps done, item steps at most


@dataclass(frozen=True)
class Aim:
    """What a run of the attack is against."""

    name: str
    known: Known
    methods: tuple[Method, ...] = METHODS
    guides: Guides | None = None  # of feature matching

    @property
    def descents(self) -> int:
        return STARTS * len(self.methods)


@dataclass(frozen=True)
class Adversary:
    """Who attacks: these clean items, which the model has right, for so many steps."""

    items: Dataset
    steps: int
    seed: int
    grid: int | None
    identity: str  # of the guard attacked, and of the guides
    work: ResultStore
    device: str = "cpu"  # where `Aim.known` and its guides are

    def attack(self, aim: Aim, start: NDArray[np.float32], budget: float, shown: Shown) -> MethodResults:
        """Every method of the aim, each part from its file, or computed and kept."""
        return MethodResults({m: self.run(aim, m, start, budget, shown) for m in aim.methods})

    def run(self, aim: Aim, method: Method, start: NDArray[np.float32], budget: float, shown: Shown) -> AdaptiveResult:
        key = self.identify(aim.name, method, start, budget)
        stop, counter = Stop(), Counter(f"{aim.name}, {method}", len(self.items) * STARTS * self.steps, shown)
        names = [field.name for field in fields(AdaptiveResult)]

        def part(number: int) -> AdaptiveResult:
            mine = slice(number, None, PARTS)

            def make() -> dict[str, NDArray[Any]]:
                found = self.part(aim, method, mine, start, budget, Heard(stop, counter))
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
            generator=torch.Generator().manual_seed(PARTS * self.seed + mine.start),
            start=None if start is None else here(start[mine]),
            guides=aim.guides,
            heard=heard,
        )
        return AdaptiveResult(*(getattr(found, f.name).cpu() for f in fields(AdaptiveResult)))

    def tried(self, aim: Aim, method: Method, budget: float, number: int) -> AdaptiveResult:
        """One part from a random point, neither shown nor kept."""
        return self.part(aim, method, slice(number, None, PARTS), None, budget, None)

    @property
    def workers(self) -> int:
        """One a core; a GPU is given everything by one."""
        return cores() if self.device == "cpu" else 1

    def identify(self, aim: str, method: Method, start: NDArray[np.float32], budget: float) -> str:
        """SHA-256 (hex) over everything that a run's result follows from."""
        settings = (self.identity, aim, method, budget, self.steps, self.seed, self.grid, self.device)
        digest = hashlib.sha256(repr((settings, self.items.labels.tolist(), start.shape)).encode())
        for images in (self.items.images, start):
            digest.update(np.ascontiguousarray(images, dtype="<f4").tobytes())
        return cache_key(digest.hexdigest(), CODE)


@dataclass(frozen=True)
class MethodResults:
    """What each method found of the same items."""

    by_method: Mapping[Method, AdaptiveResult]

    @property
    def winners(self) -> tuple[Method, ...]:
        """The method that each item's best point is of; the first named of equals."""
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
    """Items beside each other on all cores, one thread each: small convolutions gain less from sharing one."""
    count = min(PARTS, items)
    found: Sequence[AdaptiveResult] = side_by_side([partial(part, number) for number in range(count)], workers, stop)
    order = torch.cat([torch.arange(number, items, PARTS) for number in range(count)]).argsort()
    return AdaptiveResult(*(torch.cat([getattr(r, f.name) for r in found])[order] for f in fields(AdaptiveResult)))


@dataclass
class Counter:
    """Item steps done by all parts together, shown as they grow."""

    what: str
    total: int
    shown: Shown
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, items: int) -> None:
        with self.lock:
            self.done += items
            self.shown(self.what, self.done, self.total)


@dataclass(frozen=True)
class Heard:
    """Counts a step, and ends the part once the work is to end."""

    stop: Stop
    counter: Counter

    def __call__(self, items: int) -> None:
        self.stop.look()
        self.counter.add(items)
