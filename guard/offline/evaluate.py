"""Measures a bundle on held-out data: false alarms, and attacks caught.

Rule 1: no item that was fitted or calibrated on is ever counted.
Rule 2: an item is attacked only if the model's prediction verifiably changed.
Rule 3: readings come from the bundle's own programs, through the one runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import from_unit
from guard.bundle import Manifest
from guard.calibration import auroc, rejections_band
from guard.offline.craft import CraftedSet, off_grid
from guard.offline.findings import NOISE, OFF_GRID, Area, AttackRow, CleanRow, Detection, Promise, Rate, caught_at
from guard.offline.fit import batch_items
from guard.runtime import Readings, Runtime


def clean_rows(
    runtime: Runtime, clean: Readings, others: Mapping[str, NDArray[np.float32]], promises: Sequence[Promise]
) -> tuple[CleanRow, ...]:
    """Clean items, whose readings these are and whom the promise covers, and others that nobody attacked either.

    `others` are unit-space images [item, ...] by name.
    """
    manifest = runtime.bundle.manifest
    rows = [clean_row("clean", clean, promises, manifest, promised_on=runtime.calibration.items)]
    for name, images in others.items():
        if len(images):
            rows.append(clean_row(name, read(runtime, images), promises, manifest, promised_on=None))
    return tuple(rows)


def clean_row(
    name: str, readings: Readings, promises: Sequence[Promise], manifest: Manifest, *, promised_on: int | None
) -> CleanRow:
    """`promised_on` is the number of clean items that the promise rests on, where one covers the row."""
    p, made = readings.p_value, [promise for promise in promises if promise.reason is None]
    covered = promised_on is not None
    count = promised_on or 0
    return CleanRow(
        name,
        rejected=Rate.of(p <= manifest.reject_rate),
        flagged=Rate.of(p <= manifest.flag_rate),
        reject_band=rejections_band(manifest.reject_rate, count, len(p)) if covered else None,
        flag_band=rejections_band(manifest.flag_rate, count, len(p)) if covered else None,
        alarms=caught_at(promises, p),
        bands={promise.name: rejections_band(promise.rate, count, len(p)) for promise in made} if covered else {},
    )


def unattacked(
    images: NDArray[np.float32], crafted: Mapping[str, CraftedSet], grid: int | None, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Snapped noise, as large as all the attacks and as each of them, and off-grid clean; unit space [item, ...]."""
    blank = np.zeros_like(images[:0])
    found = {NOISE: np.concatenate([blank, *(c.noise for c in crafted.values())])}
    found |= {f"  as large as {label}": c.noise for label, c in crafted.items()}
    if grid is not None:
        found[OFF_GRID] = off_grid(images, grid, torch.Generator().manual_seed(seed))
    return found


def attack_row(
    runtime: Runtime,
    crafted: CraftedSet,
    clean: Readings,
    promises: Sequence[Promise],
    *,
    label: str,
    setting: str,
    left_out: Detection | None,
) -> AttackRow:
    """What the bundle makes of one attack's verified items; `clean` are the readings of all clean test items."""
    manifest, names = runtime.bundle.manifest, runtime.calibration.detectors
    readings = read(runtime, crafted.attacked)
    rejected, tried = readings.p_value <= manifest.reject_rate, crafted.tried
    handled, hits = np.ones(tried, dtype=bool), np.arange(tried) < len(rejected)
    handled[: len(rejected)] = rejected  # on the others the attack failed: still classified right
    return AttackRow(
        attack=crafted.attack,
        label=label,
        family=crafted.family,
        norm=crafted.norm,
        budget=crafted.budget,
        setting=setting,
        tried=tried,
        success=Rate.of(hits),
        served=detection(readings, clean, promises),
        left_out=left_out,
        rejected=Rate.of(rejected),
        flagged=Rate.of(readings.p_value <= manifest.flag_rate),
        robust_accuracy=Rate.of(handled),
        detector_auroc=by_detector(names, clean.scores, readings.scores),
        detector_surprise=by_detector(names, -clean.detector_p, -readings.detector_p),
    )


def detection(attacked: Readings, clean: Readings, promises: Sequence[Promise]) -> Detection:
    return Detection(Area.between(clean.risk, attacked.risk), caught_at(promises, attacked.p_value))


def by_detector(names: Sequence[str], clean: NDArray[np.float64], attacked: NDArray[np.float64]) -> dict[str, float]:
    """AUROC of each column alone; of scores, below 0.5 the attack makes an input look calmer than clean."""
    if len(attacked) == 0:
        return {}
    return {name: auroc(clean[:, d], attacked[:, d]) for d, name in enumerate(names)}


def read(runtime: Runtime, unit: NDArray[np.float32], batch: int | None = None) -> Readings:
    """Readings of unit-space images [item, ...], every program run on every item, in batches."""
    wire = from_unit(unit, runtime.spec)
    batch = batch or batch_items(unit.shape[1:])
    parts = [runtime.read(wire[i : i + batch], complete=True) for i in range(0, len(wire), batch)]
    if not parts:
        return runtime.read(wire[:0], complete=True)
    return Readings(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("logits", "scores", "risk", "p_value", "program", "detector_p")
        )
    )
