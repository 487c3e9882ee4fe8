"""Scales and tails of a fusion, moved to where clean scores lie now: what was learned from attacks stays as it is.

How it works. A fusion weighs scores by their place on the normal scale of clean quantiles, and its surprise begins at a
score. Of other clean items the quantiles are others: they become the new knots, and a tail begins at the same place of
the new scale as it did on the old, as steep in its units. So a score that was two deviations out contributes what a
score two deviations out did before.

Example. Clean scores of a detector lay around 10 with a deviation of 2 and now lie around 16 with one of 4. A tail that
began at 13 with a slope of 0.5 a score, at one and a half deviations, now begins at 22 with 0.25.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from guard.fusion import Floats, Fusion, Scale, Surprise, clean_knots

MIN_SCALE_ITEMS = 66  # twice the usual knots: with fewer the outermost quantiles are single items


def rescaled(fusion: Fusion, clean: Floats) -> Fusion:
    """The fusion on the scale of other clean scores [item, detector]."""
    knots, levels = clean_knots(clean, fusion.levels.size)
    moved = replace(fusion, knots=knots, levels=levels)
    old = fusion.surprise
    starts, slopes = old.starts.copy(), old.slopes.copy()
    for detector, (before, after) in enumerate(zip(fusion.scales, moved.scales, strict=True)):
        if old.slopes[detector] > 0:
            place = before.place(old.starts[[detector]])
            starts[detector] = float(score_at(after, place)[0])
            slopes[detector] *= after.slopes[-1] / before.slopes[-1]
    return replace(moved, surprise=Surprise(starts, slopes, old.floor, old.pace))


def score_at(scale: Scale, places: Floats) -> Floats:
    """The scores at places on a normal scale: the inverse of `Scale.place`."""
    piece = scale.levels.searchsorted(places)
    anchor = np.maximum(piece - 1, 0)
    found: Floats = scale.values[anchor] + (places - scale.levels[anchor]) / scale.slopes[piece]
    return found
