"""A discrete simulation of tasks on a cluster: stages with a barrier between them, workers that fail, one driver.

How it works. Free workers take the next task of the stage. A worker computes it, now and then slower (a straggler), and
sends its result to the driver, which takes results one after the other: bytes over its link, and a time for handling
each. A worker that fails loses the task at hand, which goes back to the queue, and another worker takes its place after
a while. A stage ends when the driver has every result; then the next one begins.

For example three tasks of 4, 2 and 2 s: one worker takes 8 s, two take 4 s, a hundred take 4 s, which is the longest.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Stage:
    """Tasks that may run side by side; the stage after them waits for all."""

    name: str
    seconds: tuple[float, ...]  # of each task, on one worker
    result_bytes: float = 0.0  # of each task

    @property
    def work_s(self) -> float:
        return sum(self.seconds)

    @property
    def longest_s(self) -> float:
        return max(self.seconds, default=0.0)


@dataclass(frozen=True)
class Cluster:
    """What tasks run on."""

    workers: int
    start_s: float = 0.0  # until a worker is there, at the beginning and after a loss
    losses_per_hour: float = 0.0  # of each worker
    straggler_share: float = 0.0  # of the tasks
    straggler_factor: float = 1.0  # by which they take longer
    bytes_per_s: float = math.inf  # of the driver's link
    handling_s: float = 0.0  # of each result, by the driver


@dataclass
class Outcome:
    """What a run took, and where its time went."""

    seconds: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0  # of all workers together, on tasks that were finished
    lost_s: float = 0.0  # on tasks that a lost worker took with it
    losses: int = 0
    driver_s: float = 0.0
    moved_bytes: float = 0.0

    def held_s(self, workers: int) -> float:
        """The time for which workers were held, idle or not."""
        return workers * self.seconds


def simulate(stages: Sequence[Stage], cluster: Cluster, *, seed: int = 0) -> Outcome:
    """Run the stages one after the other on a cluster."""
    draw = np.random.default_rng(seed)
    outcome = Outcome(seconds=cluster.start_s)
    failing = _Failures(cluster, draw)
    for stage in stages:
        began = outcome.seconds
        outcome.seconds = _run(stage, cluster, began, failing, draw, outcome)
        outcome.stage_s[stage.name] = outcome.stage_s.get(stage.name, 0.0) + outcome.seconds - began
    return outcome


class _Failures:
    """The time at which each worker fails next."""

    def __init__(self, cluster: Cluster, draw: np.random.Generator) -> None:
        self.rate_per_s, self.draw = cluster.losses_per_hour / 3600, draw
        self.next_s = [self.after(cluster.start_s) for _ in range(cluster.workers)]

    def after(self, now: float) -> float:
        return now + float(self.draw.exponential(1 / self.rate_per_s)) if self.rate_per_s else math.inf


def _run(
    stage: Stage, cluster: Cluster, now: float, failing: _Failures, draw: np.random.Generator, outcome: Outcome
) -> float:
    """Run one stage from `now` on; return when the driver has its last result."""
    slow = draw.random(len(stage.seconds)) < cluster.straggler_share
    queue = deque(
        seconds * (cluster.straggler_factor if late else 1.0) for seconds, late in zip(stage.seconds, slow, strict=True)
    )
    free = [(now, worker) for worker in range(cluster.workers)]
    running: list[tuple[float, int, float, bool]] = []  # ends at, worker, its seconds, whether it is finished then
    driver_free, arrival_s = now, stage.result_bytes / cluster.bytes_per_s + cluster.handling_s
    while queue or running:
        if queue and free and (not running or free[0][0] <= running[0][0]):
            at, worker = heapq.heappop(free)
            while failing.next_s[worker] <= at:  # while it was idle
                outcome.losses += 1
                at = max(at, failing.next_s[worker] + cluster.start_s)
                failing.next_s[worker] = failing.after(at)
            seconds = queue.popleft()
            fails_at = failing.next_s[worker]
            finished = at + seconds <= fails_at
            heapq.heappush(running, (at + seconds if finished else fails_at, worker, seconds, finished))
            if not finished:
                outcome.lost_s += fails_at - at
            continue
        at, worker, seconds, finished = heapq.heappop(running)
        if finished:
            driver_free = max(driver_free, at) + arrival_s
            outcome.driver_s += arrival_s
            outcome.busy_s += seconds
            outcome.moved_bytes += stage.result_bytes
            heapq.heappush(free, (at, worker))
        else:
            outcome.losses += 1
            queue.append(seconds)
            failing.next_s[worker] = failing.after(at + cluster.start_s)
            heapq.heappush(free, (at + cluster.start_s, worker))
    return driver_free
