"""The drift monitor: "this traffic is not what the bundle was calibrated on", with a promise over the whole run.

Rule 1: the probability that it ever alarms on traffic that is exchangeable with the calibration items is at most the
promised one, whatever the volume: not per day and not per look.
Rule 2: what it finds does not depend on how items were cut into requests, only on their order.
Rule 3: it never changes a verdict.

How it works. Items that are no near-copies are collected into blocks of 50. Each statistic is ranked among calibration
and stream and bet on (`ranks`, `rank_martingale`); all scores together are compared by a kernel (`kernel_martingale`).
Each of these tests has an equal part of the promise. Near-copies are left out of the calibration items alike: where
clean data hold blank frames, these would otherwise have more of them than the stream can show. An alarm stays until the
monitor is made anew, as for another bundle. What has drifted becomes part of what is compared with: a change is seen
soon after it comes, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration
from guard.cascade import Readings
from guard.drift.kernel_martingale import KernelMartingale
from guard.drift.rank_martingale import RankMartingale
from guard.drift.ranks import Bins, StreamRanks
from guard.drift.statistics import Statistics
from guard.drift.wealth import log10_evidence
from guard.fusion import Floats
from guard.near_copies import NearCopies, coarse_view, copy_distance

BLOCK_ITEMS = 50
KERNEL = "kernel"  # the name of the test that sees all scores together


@dataclass(frozen=True)
class DriftAlarm:
    """The first test whose evidence reached what the promise asks."""

    statistic: str
    items: int  # counted until then, near-copies left out
    log10_evidence: float


class DriftMonitor:
    """The watch over one stream of inspected items, for one bundle."""

    def __init__(
        self,
        calibration: Calibration,
        classes: int,
        *,
        probability: float,
        generator: np.random.Generator,
        to_unit: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
    ) -> None:
        """Watch items with readings of this calibration; `to_unit` maps wire inputs to [0, 1], channels first.

        `probability` is the promised one of a false alarm; it holds where the calibration knows its items' nearness, or
        they have no near-copies among them. Without `to_unit` near-copies count as any other item.
        """
        self.statistics = Statistics(calibration if to_unit is None else calibration.thinned, classes)
        self.probability = probability
        self.generator = generator
        self.to_unit = to_unit
        near = copy_distance(calibration.typical_distance)
        self.copies = None if to_unit is None else NearCopies(generator, near)
        self.ranks = StreamRanks(self.statistics.counts())
        self.martingale = RankMartingale(len(self.statistics.names))
        self.kernel = KernelMartingale(self.statistics.places(self.statistics.reference_scores), generator)
        # Views [item, value], logits, scores and risks of items that no bet was made on
        self.waiting: list[tuple[NDArray[np.float32], NDArray[np.float32], Floats, Floats]] = []
        self.waiting_items = 0
        self.known = 0  # of those, the first, which are no near-copies
        self.items = 0  # bet on
        self.repeats = 0  # near-copies, which are left out
        self.alarm: DriftAlarm | None = None

    @property
    def tests(self) -> tuple[str, ...]:
        """The names of the tests, each with an equal part of the promise."""
        return (*self.statistics.names, KERNEL)

    @property
    def threshold(self) -> float:
        """The evidence, as a power of ten, that is an alarm."""
        return -math.log10(self.probability)

    @property
    def log10_evidence(self) -> dict[str, float]:
        """The evidence of each test against "as calibrated", as a power of ten."""
        logs = [*self.martingale.log_wealth.tolist(), self.kernel.log_wealth]
        return {name: log10_evidence(log, len(logs)) for name, log in zip(self.tests, logs, strict=True)}

    def see(self, images: NDArray[Any], readings: Readings) -> None:
        """Take inspected items, wire inputs [item, ...] and their readings, in the order in which they came."""
        views = coarse_view(self.to_unit(images)) if self.to_unit else np.zeros((len(images), 0), dtype=np.float32)
        self.waiting.append((views, readings.logits, readings.scores, readings.risk))
        self.waiting_items += len(images)
        if self.waiting_items >= BLOCK_ITEMS:
            self.bet()

    def bet(self) -> None:
        """Bet on all full blocks of what waits, without its near-copies."""
        views, logits, scores, risk = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        if self.copies is not None:
            fresh = np.ones(len(views), dtype=np.bool_)
            fresh[self.known :] = self.copies.fresh(views[self.known :])
            self.repeats += int((~fresh).sum())
            views, logits, scores, risk = views[fresh], logits[fresh], scores[fresh], risk[fresh]
        end = len(risk) // BLOCK_ITEMS * BLOCK_ITEMS
        bins = self.statistics.bins(logits[:end], scores[:end], risk[:end])
        places = self.statistics.places(scores[:end])
        for start in range(0, end, BLOCK_ITEMS):
            self.see_block(bins[:, start : start + BLOCK_ITEMS], places[start : start + BLOCK_ITEMS])
        self.waiting = [(views[end:], logits[end:], scores[end:], risk[end:])]
        self.waiting_items = self.known = len(risk) - end

    def see_block(self, bins: Bins, places: Floats) -> None:
        """Bet on one block, and look whether any test has reached what the promise asks."""
        self.martingale.see(self.ranks.p_values(bins, self.generator.random(bins.shape)))
        self.kernel.see(places)
        self.items += len(places)
        if self.alarm is None:
            evidence = self.log10_evidence
            name = max(evidence, key=evidence.__getitem__)
            if evidence[name] >= self.threshold:
                self.alarm = DriftAlarm(name, self.items, evidence[name])
