"""The statistics of an inspected item that are watched for drift, each cut into bins that no watched item has chosen.

How it works. A detector's score is placed on the normal scale of its clean quantiles, which come from the split that
the fusion was fitted on, and cut there at fixed places. The risk is cut into equal parts of each level of the cascade.
Margin and class of the model's answer have fixed bins too; a bundle holds no answers to its calibration items, so these
two are compared with the beginning of the stream alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration
from guard.cascade import level_above, level_below
from guard.drift.ranks import Bins
from guard.fusion import Floats, Scale

RISK, MARGIN, CLASS = "risk", "margin", "class"
LEVEL_BINS = 256  # of the risk, in each level of the cascade
MAX_CLASS_BINS = 1024
OUTER_DEVIATIONS = (3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
# On the normal scale, symmetric: every quarter of a deviation up to three, then ever wider
CUT_DEVIATIONS = np.asarray([*(-x for x in reversed(OUTER_DEVIATIONS)), *np.arange(-3, 3.01, 0.25), *OUTER_DEVIATIONS])
MARGIN_CUTS = np.sinh(np.linspace(0.0, 5.0, 64))  # of the two largest logits' difference
MAX_KERNEL_DEVIATIONS = 6.0  # where a score's place is clipped before the kernel sees it


@dataclass(frozen=True, eq=False)
class Statistics:
    """The watched statistics of a calibrated guard: their names, and the bins of items."""

    calibration: Calibration  # of the programs
    classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the statistics, in their order."""
        return (*self.calibration.detectors, RISK, MARGIN, CLASS)

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """The normal scale of each detector's scores, of the last fusion, which knows them all."""
        return self.calibration.fusions[-1].scales

    @property
    def risk_bins(self) -> int:
        """The number of bins of the risk, those of all levels of the cascade."""
        last = len(self.calibration.programs) - 1
        return LEVEL_BINS * (1 + max(level_below(last), level_above(0, last)))

    def counts(self) -> NDArray[np.int64]:
        """The counts [statistic, bin] of the calibration items, where they are known."""
        sizes = (*[len(CUT_DEVIATIONS) + 2] * len(self.calibration.detectors), self.risk_bins)
        sizes = (*sizes, len(MARGIN_CUTS) + 1, min(self.classes, MAX_CLASS_BINS))
        found = np.zeros((len(self.names), max(sizes)), dtype=np.int64)
        known = [*self.score_bins(self.reference_scores), self.binned_risk(self.calibration.clean_risks)]
        for statistic, bins in enumerate(known):
            found[statistic] = np.bincount(bins, minlength=found.shape[1])
        return found

    def bins(self, logits: NDArray[np.float32], scores: Floats, risk: Floats) -> Bins:
        """The bins [statistic, item] of items with logits [item, class], scores [item, detector] and risks [item]."""
        two = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
        margin = MARGIN_CUTS.searchsorted(np.nan_to_num(two[:, 1] - two[:, 0]), side="right")
        named = logits.argmax(axis=1) * min(self.classes, MAX_CLASS_BINS) // self.classes
        return np.stack([*self.score_bins(scores), self.binned_risk(risk), margin, named]).astype(np.int64)

    def places(self, scores: Floats) -> Floats:
        """The places [item, number] of scores [item, detector] that a kernel sees; 0 where a detector did not run."""
        columns = [scale.place(scores[:, place]) for place, scale in enumerate(self.scales)]
        found: Floats = np.stack(columns, axis=1)
        found = np.nan_to_num(found, nan=0.0, posinf=MAX_KERNEL_DEVIATIONS, neginf=-MAX_KERNEL_DEVIATIONS)
        return found.clip(-MAX_KERNEL_DEVIATIONS, MAX_KERNEL_DEVIATIONS)

    @cached_property
    def reference_scores(self) -> Floats:
        """The scores [item, detector] of the calibration items as serving sees them."""
        return as_served(self.calibration, self.calibration.clean_scores, self.calibration.clean_risks)

    def score_bins(self, scores: Floats) -> list[Bins]:
        """The bins [item] of each detector's scores [item, detector]; the last one where it did not run."""
        found = []
        for place, scale in enumerate(self.scales):
            column = scores[:, place]
            bins = CUT_DEVIATIONS.searchsorted(scale.place(column), side="right")
            found.append(np.where(np.isnan(column), len(CUT_DEVIATIONS) + 1, bins).astype(np.int64))
        return found

    def binned_risk(self, risk: Floats) -> Bins:
        """The bins [item] of risks on the scale of the whole cascade; a risk that is no number is the highest."""
        top = self.risk_bins - 1
        return np.nan_to_num(np.floor(risk * LEVEL_BINS), nan=top).clip(0, top).astype(np.int64)


def as_served(calibration: Calibration, scores: Floats, risk: Floats) -> Floats:
    """The scores [item, detector] of items with these risks, NaN where an earlier program would have decided."""
    last = len(calibration.programs) - 1
    found, level = scores.copy(), np.floor(risk)
    for program, end in enumerate(np.cumsum(calibration.programs)[:-1]):
        early = (level == level_above(program, last)) | (level == level_below(program))
        found[early, end:] = np.nan
    return found
