"""Runs of the adaptive attack: one method against one aim within a budget, in parts side by side, kept in files.

Rule 1: a part's file is named by all that it follows from; an interrupted run repeats no part that was finished.
Rule 2: the number of parts is fixed, so that a result does not depend on the machine's cores.

How it works. A run takes every fourth item into the same part, attacks the parts of all its methods as independent
tasks, keeps each part's result in a file, and puts the items back into their order.

For example 100 items, two methods and 25 steps. Each method has four parts of 25 items: part 0 holds the items 0, 4,
... 96, part 1 the items 1, 5, ... 97. With seed 0 the parts draw from the seeds 0, 1, 2 and 3. Two methods leave 2 x 4
files (NAME-METHOD-PART-KEY.npz). A method begins twice (at the static attack's result and at a random point), so it
takes at most 100 x 2 x 25 = 5,000 item steps, `several_targets` as many for each class that it descends towards. A run
that is interrupted after three files computes the other five.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from guard.offline.adversary.descent import METHODS, AdaptiveResult, Known, adaptive, beats, descents_of
from guard.offline.adversary.directions import Method
from guard.offline.adversary.guides import Guides
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Grid
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.store import Arrays, ResultStore, cache_key
from guard.offline.work.tasks import Executor, Tasks, Watch, resumed

MAX_GUIDE_ITEMS = 200  # clean items, at most, that feature matching chooses from


# What a run's result follows from: the descent, and the guard's risk with everything in it that is differentiated.
CODE = (__name__, "guard.offline.adversary.excess", "guard.offline.detectors.table")
START_POINTS = 2  # descents of each method: from the static attack's result and from a random point
ITEM_PARTS = 4  # into which the items are divided
RESULT = tuple(one.name for one in fields(AdaptiveResult))  # the arrays of a part's result

StepReporter: TypeAlias = Callable[[object, int, int], None]  # (what runs, item steps done, item steps at most)


@dataclass(frozen=True)
class Aim:
    """Target of a run: the guard or detector that is attacked, and the methods that are tried against it."""

    name: str
    known: Known
    methods: tuple[Method, ...] = METHODS
    guides: Guides | None = None  # for feature matching alone


@dataclass(frozen=True, eq=False)
class SharedAim:
    """What all parts of the runs against one aim share."""

    aim: Aim
    budget: float
    steps: int
    grid: Grid
    device: str


@dataclass(frozen=True, eq=False)
class ItemPart:
    """Part of a run: some of its items, and where they begin."""

    method: Method
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    start: NDArray[np.float32] | None
    seed: int


def attacked_part(shared: SharedAim, part: ItemPart, watch: Watch) -> dict[str, NDArray[Any]]:
    """Attack a part, and return its result as arrays."""

    def here(values: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(values, device=shared.device)

    def heard(items: int) -> None:
        watch.look()
        watch.count(items)

    found = adaptive(
        shared.aim.known,
        here(part.images),
        here(part.labels),
        budget=shared.budget,
        steps=shared.steps,
        grid=shared.grid,
        method=part.method,
        generator=torch.Generator().manual_seed(part.seed),
        start=None if part.start is None else here(part.start),
        guides=shared.aim.guides,
        heard=heard,
    )
    return {name: getattr(found, name).cpu().numpy() for name in RESULT}


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
    executor: Executor = OWN_THREADS

    def attack(self, aim: Aim, start: NDArray[np.float32], budget: float, shown: StepReporter) -> MethodResults:
        """Run every method of the aim, each part read from its file, or computed and kept."""
        found = self.runs(aim, aim.methods, start, budget, shown)
        return MethodResults(dict(zip(aim.methods, found, strict=True)))

    def run(
        self, aim: Aim, method: Method, start: NDArray[np.float32] | None, budget: float, shown: StepReporter
    ) -> AdaptiveResult:
        """Run one method, each part read from its file, or computed and kept; without `start` from one random point."""
        return self.runs(aim, (method,), start, budget, shown)[0]

    def runs(
        self,
        aim: Aim,
        methods: Sequence[Method],
        start: NDArray[np.float32] | None,
        budget: float,
        shown: StepReporter,
    ) -> list[AdaptiveResult]:
        """Run these methods, the parts of all of them side by side."""
        starts, done = 1 if start is None else START_POINTS, 0
        total = sum(len(self.items) * starts * descents_of(method) * self.steps for method in methods)
        what = f"{aim.name}, {methods[0]}" if len(methods) == 1 else f"{aim.name}, {len(methods)} methods"

        def counted(steps: int) -> None:
            nonlocal done
            done += steps
            shown(what, done, total)

        keys = {method: self.identify(aim.name, method, start, budget) for method in methods}
        parts = [(method, number) for method in methods for number in range(self.parts)]
        found = resumed(
            self.executor,
            Tasks(attacked_part, self.shared(aim, budget), [self.part(*part, start) for part in parts]),
            [self.work.place(f"{aim.name}-{method}-{number}", keys[method], RESULT) for method, number in parts],
            counted=counted,
        )
        return [self.together(found[first : first + self.parts]) for first in range(0, len(found), self.parts)]

    def shared(self, aim: Aim, budget: float) -> SharedAim:
        return SharedAim(aim, budget, self.steps, self.grid, self.device)

    def part(self, method: Method, number: int, start: NDArray[np.float32] | None) -> ItemPart:
        mine = slice(number, None, ITEM_PARTS)
        return ItemPart(
            method,
            self.items.images[mine],
            self.items.labels[mine],
            None if start is None else start[mine],
            ITEM_PARTS * self.seed + number,
        )

    def tried(self, aim: Aim, method: Method, budget: float) -> None:
        """Attack all parts from a random point, without showing progress and without keeping a result."""
        parts = [self.part(method, number, None) for number in range(self.parts)]
        self.executor.run(Tasks(attacked_part, self.shared(aim, budget), parts))

    @property
    def parts(self) -> int:
        """Number of parts: fewer where there are fewer items."""
        return min(ITEM_PARTS, len(self.items))

    def together(self, found: Sequence[Arrays]) -> AdaptiveResult:
        """Put the items of all parts back into order."""
        places = [torch.arange(number, len(self.items), ITEM_PARTS) for number in range(len(found))]
        order = torch.cat(places).argsort()
        return AdaptiveResult(
            *(torch.cat([torch.from_numpy(np.asarray(part[name])) for part in found])[order] for name in RESULT)
        )

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
