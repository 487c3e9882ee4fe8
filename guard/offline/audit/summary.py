"""The summary of an audit log: counts by time, principal and detector, and the riskiest inputs that were kept.

How it works. Lines are read once and only counted, but for times and the few riskiest inputs; so a log of any size that
the guard writes fits in memory. For example, 500 rejected requests of one client within a minute, in a log of a week,
are one high bar, one name, and the detectors that saw them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.audit_log import kept_tensor

MAX_KEPT_IMAGES = 12
MAX_BINS = 60
UNNAMED = "(not named)"
QUERY_ATTACK, QUERIES = "query_attack", "part of a query attack"
KINDS = {  # what is told apart in the pictures, and the actions that it stands for
    "rejected": ("reject", "would_reject"),
    "flagged or repaired": ("flag", "repair", "would_flag", "would_repair"),
    "passed unchecked": ("unchecked",),
    "refused unchecked": ("refused",),
    QUERIES: (),  # by its reason, whatever its verdict
}
KIND_OF = {action: kind for kind, actions in KINDS.items() for action in actions}


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An input that a line kept, as it came, with the facts for its caption."""

    image: NDArray[Any]
    p_value: float
    prediction: int | None
    action: str
    name: str
    bundle: str | None = None  # the digest of the one that judged it


@dataclass(eq=False)
class AuditSummary:
    """The counts of a log; a line that held several events back counts for all of them."""

    events: int = 0
    undated: int = 0  # lines without a time that can be read: counted, and in no picture of time
    times: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})  # Unix time, by kind
    weights: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    actions: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    principals: Counter[str] = field(default_factory=Counter)
    detectors: Counter[str] = field(default_factory=Counter)  # by which the worst item was the most suspicious
    reasons: Counter[str] = field(default_factory=Counter)
    atlas: Counter[str] = field(default_factory=Counter)
    inputs: list[tuple[float, int, KeptInput]] = field(default_factory=list)  # a heap: the least risky first

    @staticmethod
    def of(lines: Iterable[Mapping[str, Any]]) -> AuditSummary:
        """Count the lines of a log."""
        found = AuditSummary()
        for line in lines:
            found.count(line)
        return found

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a line of the log, once for each event that it stands for."""
        action = str(line["action"])
        held_back = line.get("held_back")
        weight = 1 + (held_back if isinstance(held_back, int) and held_back > 0 else 0)
        self.events += weight
        self.actions[action] += weight
        self.models[str(line.get("model", UNNAMED))] += weight
        self.principals[str(line.get("principal") or UNNAMED)] += weight
        for name in line.get("atlas") or ():
            self.atlas[str(name)] += weight
        if isinstance(reason := line.get("reason"), str):
            self.reasons[reason] += weight
        if (seen := most_suspicious(line.get("detectors"))) is not None:
            self.detectors[seen] += weight
        if (moment := unix_time(line.get("time"))) is None:
            self.undated += weight
        elif (kind := QUERIES if reason == QUERY_ATTACK else KIND_OF.get(action)) is not None:
            self.times[kind].append(moment)
            self.weights[kind].append(weight)
        if (kept := kept_input(line)) is not None:
            entry = (-kept.p_value, self.events, kept)
            if len(self.inputs) < MAX_KEPT_IMAGES:
                heapq.heappush(self.inputs, entry)
            else:
                heapq.heappushpop(self.inputs, entry)

    @property
    def riskiest(self) -> list[KeptInput]:
        """The kept inputs with the smallest p-values, the smallest first."""
        return [kept for _, _, kept in sorted(self.inputs, key=lambda entry: -entry[0])]

    @property
    def span(self) -> tuple[float, float] | None:
        """The Unix times of the first and the last event; None where none has a time."""
        moments = [moment for times in self.times.values() for moment in times]
        return (min(moments), max(moments)) if moments else None

    def waves(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Edges [bin + 1] of equal bins of time, and the events [bin] of each kind."""
        first, last = self.span or (0.0, 0.0)
        bins = MAX_BINS if last > first else 1
        edges = np.linspace(first, max(last, first + 1.0), bins + 1)
        counts = {}
        for kind, times in self.times.items():
            counts[kind] = np.histogram(times, edges, weights=self.weights[kind])[0].astype(np.float64)
        return edges, counts

    @property
    def peak(self) -> tuple[float, float, int] | None:
        """Begin, end and events of the fullest bin; None where no event has a time."""
        if self.span is None:
            return None
        edges, counts = self.waves()
        total = np.sum(list(counts.values()), axis=0)
        most = int(total.argmax())
        return float(edges[most]), float(edges[most + 1]), int(total[most])


def most_suspicious(detectors: Any) -> str | None:
    """The detector with the smallest p-value; None where there is none."""
    if not isinstance(detectors, dict):
        return None
    known = {name: p for name, p in detectors.items() if isinstance(p, int | float) and not math.isnan(p)}
    return min(known, key=lambda name: known[name]) if known else None


def unix_time(text: Any) -> float | None:
    """The Unix time of a line; None where it cannot be read."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def kept_input(line: Mapping[str, Any]) -> KeptInput | None:
    """The input that a line kept; None where it kept none that can be read."""
    if (image := kept_tensor(line)) is None:
        return None
    try:
        prediction = line.get("prediction")
        known = prediction if isinstance(prediction, int) else None
        named, digest = str(line.get("id", "")), line.get("bundle")
        judged = digest if isinstance(digest, str) else None
        return KeptInput(image, float(line["p_value"]), known, str(line["action"]), named, judged)
    except (KeyError, TypeError, ValueError):
        return None
