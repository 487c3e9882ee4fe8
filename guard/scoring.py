"""Scoring of a file's items by a bundle: one JSON line an item."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from guard.arrays import ALL_COLUMNS, read_examples, to_wire, value_notes
from guard.bundle import Bundle
from guard.cascade import Readings
from guard.columns import ColumnChoice
from guard.policy import Policy
from guard.runtime import Runtime
from guard.session import Device

BATCH_ITEMS = 64


def score_lines(
    bundle: Path,
    file: Path,
    *,
    device: Device,
    threads: int | None,
    layout: str | None = None,
    choice: ColumnChoice = ALL_COLUMNS,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Yield a JSON line for each item of a file; what was left out or changed in reading is handed to `say`.

    Raises BundleError, DataError, DeviceError before the first line.
    """
    runtime = Runtime.open(Bundle.open(bundle), device=device, threads=threads)
    manifest = runtime.bundle.manifest
    known = replace(choice, features=runtime.spec.features)
    examples = read_examples(file, layout=layout, classes=manifest.model.output.labels, choice=known)
    images = examples.images[:]
    wire = to_wire(images, runtime.spec, str(file), layout=examples.layout)
    for note in (*examples.notes, *value_notes(images, runtime.spec, str(file))):
        say(note)
    policy = Policy(reject_rate=manifest.reject_rate, flag_rate=manifest.flag_rate)
    for start in range(0, len(wire), BATCH_ITEMS):
        readings = runtime.read(wire[start : start + BATCH_ITEMS])
        for row in range(len(readings.risk)):
            yield score_line(start + row, row, readings, runtime.calibration.detectors, policy)


def score_line(item: int, row: int, readings: Readings, detectors: tuple[str, ...], policy: Policy) -> str:
    """The JSON line of one item.

    Its `detectors` holds two-sided p-values; null where the cascade had decided before the detector ran.
    """
    values = (float(p) for p in readings.detector_p[row])
    return json.dumps(
        {
            "item": item,
            "prediction": int(readings.prediction[row]),
            "action": policy.judge(float(readings.p_value[row])).value,
            "p_value": round(float(readings.p_value[row]), 6),
            "detectors": {n: None if math.isnan(p) else round(p, 6) for n, p in zip(detectors, values, strict=True)},
        }
    )
