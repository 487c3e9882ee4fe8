"""The comparison of bundle and upstream: on which share of recent items they have named different classes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guard.manifest import ModelSpec
from guard.serve.log import Log, Seldom
from guard.serve.metrics import Metrics
from guard.serve.readiness import Readiness

DISAGREEMENT_LOG_S = 10.0  # at most one line about a stale bundle in this time
WINDOW_ITEMS = 256
MIN_COMPARED_ITEMS = 64  # below which no share is given: one odd answer is no incident


class Agreement:
    """The share of disagreement over the last `WINDOW_ITEMS` compared items, counted by whole requests."""

    def __init__(self) -> None:
        self.requests: deque[tuple[int, int]] = deque()  # items that differed, and items
        self.different = self.items = 0

    def note(self, different: int, items: int) -> float | None:
        """Add a request and return the share, or None while too few items were compared."""
        self.requests.append((different, items))
        self.different += different
        self.items += items
        while self.items - self.requests[0][1] >= WINDOW_ITEMS:
            gone, count = self.requests.popleft()
            self.different -= gone
            self.items -= count
        return self.different / self.items if self.items >= MIN_COMPARED_ITEMS else None


@dataclass(kw_only=True)
class UpstreamComparison:
    """The comparison of classes that bundle and upstream name: counted and logged, so that a stale one is noticed."""

    model: ModelSpec
    label: str  # of the model, in metrics, readiness and log
    metrics: Metrics
    readiness: Readiness
    log: Log
    most: float | None  # share of disagreement beyond the measured one, above which the guard is not ready; None: any
    measured: float = 0.0  # in training, of a served model in fewer bits or a student: no sign that the bundle is stale
    stale: bool = False  # as last told
    agreement: Agreement = field(default_factory=Agreement)
    seldom: Seldom = field(default_factory=lambda: Seldom(DISAGREEMENT_LOG_S))

    def compare(self, own: NDArray[np.int64], theirs: NDArray[np.int64] | None) -> None:
        """Count and log the items on which the classes [item] differ; nothing where the upstream's are not known."""
        if theirs is None:
            return
        different = self.metrics.predictions(self.label, own, theirs)
        self.note(different, len(own))
        if different and self.seldom.due("disagreement", time.monotonic()) is not None:
            self.log.warning(
                "disagreement",
                model=self.label,
                items=len(own),
                different=different,
                fingerprint=self.model.fingerprint,
            )

    def note(self, different: int, items: int) -> None:
        """Update the share of disagreement, which readiness follows where the operator has set a limit."""
        share = self.agreement.note(different, items)
        if share is None:
            return
        self.metrics.disagreement.labels(self.label).set(share)
        if self.most is None:
            return
        stale = share > self.most + self.measured
        if stale is not self.stale:
            self.stale = stale
            reason = (
                f"bundle and model server name different classes of {self.label!r} for {share:.0%} of the last items"
            )
            self.readiness.say(
                "bundle", f"{reason}; is the bundle for this model?" if stale else None, model=self.label
            )
