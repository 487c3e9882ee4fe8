"""The row of what an attacker gets through who knows less than all, on the items of an adaptive row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Readings
from guard.offline.findings.evaluation import OutcomeRow
from guard.offline.findings.intervals import Promise, Rate
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read

HALF_RATE = 0.5  # the rate of SR@50: past the target, an attack goes on until half of all clean items look riskier


def outcome_row(
    subject: OpenedGuard, promises: Sequence[Promise], images: NDArray[np.float32], labels: NDArray[np.int64]
) -> OutcomeRow:
    """Return what these inputs [item, ...] get through of a guard, as it judges them itself."""
    readings, rates = read(subject.cascade, images, answering=subject.classifier.answering), subject.rates
    missed = missed_at(readings, labels)
    return OutcomeRow(
        fooled=Rate.of(readings.prediction != labels),
        passed={p.rate: Rate.of(missed > p.rate) if p.reason is None else None for p in promises},
        passed_reject=Rate.of(missed > rates.reject),
        passed_flag=Rate.of(missed > rates.flag),
        sr50=Rate.of(missed > HALF_RATE),
    )


def missed_at(readings: Readings, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the p-value [item] where the model is fooled, and -1, below any rate, where there is nothing to miss."""
    return np.where(readings.prediction != labels, readings.p_value, -1.0)
