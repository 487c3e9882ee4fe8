"""The watch over a bundle's traffic while it serves: a drift monitor behind a thread of its own.

Rule 1: no request waits for it, fails for it or gets another verdict for it; what finds no room is dropped and counted.
Rule 2: an alarm is told once, in the log and as a metric, and stays until the bundle is replaced or the guard restarts.

How it works. The event loop only collects: when 25 items are there, they go to the thread together, which reads them in
slices. Dropped items are dropped by how much waits, whatever they hold, so that those that remain keep the promise. A
request is never too large: where the thread has nothing to do, it is taken.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.cascade import Readings, joined
from guard.drift.monitor import DriftMonitor
from guard.serve.drift_metrics import DriftMetrics
from guard.serve.log import Log

HANDED_OVER_ITEMS = 25
MAX_WAITING_BYTES = 32 << 20  # of images, one request apart
MIN_SEEN_ITEMS, MANY_REPEATS_SHARE = 1000, 0.9  # of all items: then there is a line in the log
MAX_SLICE_BYTES = 8 << 20  # of images that the monitor sees at once, in several copies


class DriftWatch:
    """A watch that is handed every inspected item, in the order in which the guard inspected them."""

    def __init__(self, bundle: Bundle, *, probability: float, label: str, metrics: DriftMetrics, log: Log) -> None:
        """Watch traffic of models named `label`; `probability` is the promised one of a false alarm."""
        model = bundle.manifest.model
        self.label, self.metrics, self.log = label, metrics, log
        self.monitor = DriftMonitor(
            bundle.calibration,
            model.output.classes,
            probability=probability,
            generator=np.random.default_rng(),
            to_unit=model.input.box.to_unit if model.input.axes.places else None,  # rows of a table are often alike
        )
        self.waiting: list[tuple[NDArray[Any], Readings]] = []
        self.waiting_items = 0
        self.held_bytes = 0  # of what waits here, and of what the thread has
        self.handed_over = 0  # collections that the thread is not done with
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift")
        self.over = False  # after a failure, or once the bundle is replaced
        self.shown_items = self.shown_repeats = 0
        self.shown_alarm = self.shown_loss = self.shown_repetition = False
        self.is_promised = self.monitor.copies is None or bundle.calibration.nearness is not None

    def begin(self) -> None:
        """Show a watch that begins anew: its bundle is at work from now on."""
        self.metrics.begin(self.label)
        self.show_evidence()
        if not self.is_promised:
            warning = "the bundle does not say how near its clean items are to one another: where they hold near-copies"
            warning += (
                ", as blank frames, drift_alarm_probability is no promise. guard calibrate or guard train sets it"
            )
            self.log.info("drift not promised", model=self.label, warning=warning)

    def see(self, images: NDArray[Any], readings: Readings) -> None:
        """Take inspected items, wire inputs [item, ...] and their readings; called on the event loop."""
        if self.over:
            return
        with self.lock:
            full = self.held_bytes + images.nbytes > MAX_WAITING_BYTES
            taken = not full or self.handed_over == 0
            if taken:
                self.held_bytes += images.nbytes
        if taken:
            self.waiting.append((images, readings))
            self.waiting_items += len(images)
        else:
            self.lose(len(images))
        if full or self.waiting_items >= HANDED_OVER_ITEMS or images.nbytes > MAX_WAITING_BYTES // HANDED_OVER_ITEMS:
            self.hand_over()

    def hand_over(self) -> None:
        """Hand to the thread what waits."""
        parts, self.waiting, self.waiting_items = self.waiting, [], 0
        if parts:
            with self.lock:
                self.handed_over += 1
            self.thread.submit(self.watch, parts)

    def lose(self, items: int) -> None:
        """Count items that found no room; of the first ones there is a line in the log."""
        self.metrics.lost.labels(self.label).inc(items)
        if not self.shown_loss:
            self.shown_loss = True
            warning = "requests come faster than drift is watched; those that find no room are not, and are counted"
            self.log.warning("drift items lost", model=self.label, warning=warning)

    def watch(self, parts: list[tuple[NDArray[Any], Readings]]) -> None:
        """Bet on what was collected, and tell what came of it; called on the thread."""
        try:
            if sum(images.nbytes for images, _ in parts) <= MAX_SLICE_BYTES:  # the usual case: few calls
                parts = [(np.concatenate([images for images, _ in parts]), joined([one for _, one in parts]))]
            for images, readings in parts:
                step = max(1, MAX_SLICE_BYTES // max(1, images[0].nbytes)) if len(images) else 1
                for start in range(0, len(images), step):
                    end = min(start + step, len(images))
                    self.monitor.see(images[start:end], readings.rows(start, end))
            self.tell()
        except Exception as error:  # noqa: BLE001  whatever it is, requests must not notice
            self.over = True
            self.log.error("drift is no longer watched", model=self.label, cause=repr(error))
        finally:
            with self.lock:
                self.handed_over -= 1
                self.held_bytes -= sum(images.nbytes for images, _ in parts)

    def tell(self) -> None:
        """Show evidence and counts, and tell a new alarm."""
        monitor, metrics = self.monitor, self.metrics
        if self.over or (monitor.items, monitor.repeats) == (self.shown_items, self.shown_repeats):
            return
        metrics.items.labels(self.label).inc(monitor.items - self.shown_items)
        metrics.repeats.labels(self.label).inc(monitor.repeats - self.shown_repeats)
        self.shown_items, self.shown_repeats = monitor.items, monitor.repeats
        self.show_evidence()
        self.show_repetition()
        if monitor.alarm is None or self.shown_alarm:
            return
        self.shown_alarm = True
        metrics.alarm.labels(self.label).set(1)
        self.log.warning(
            "drift",
            model=self.label,
            statistic=monitor.alarm.statistic,
            items=monitor.alarm.items,
            log10_evidence=round(monitor.alarm.log10_evidence, 2),
            warning=f"the traffic is not what the bundle was calibrated on; false alarms of a whole run have a "
            f"probability of at most {monitor.probability:g}. Look at what came; guard calibrate sets thresholds anew",
        )

    def show_repetition(self) -> None:
        """Tell, once, of traffic that is nearly all near-copies, of which next to nothing is watched."""
        items, repeats = self.monitor.items, self.monitor.repeats
        if self.shown_repetition or repeats < MIN_SEEN_ITEMS or repeats <= MANY_REPEATS_SHARE * (items + repeats):
            return
        self.shown_repetition = True
        warning = (
            "nearly all items are near-copies of earlier ones, as a still camera's are; drift is seen late, if ever"
        )
        self.log.warning("mostly near-copies", model=self.label, items=items, repeats=repeats, warning=warning)

    def show_evidence(self) -> None:
        """Show the evidence of each test."""
        for test, evidence in self.monitor.log10_evidence.items():
            self.metrics.evidence.labels(self.label, test).set(evidence)

    def close(self) -> None:
        """Let the thread end after its current work; what comes from now on is not watched."""
        self.over = True
        self.thread.shutdown(wait=False, cancel_futures=True)
