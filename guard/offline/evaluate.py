"""Measures a bundle on held-out data: false alarms, attacks caught, and what an attacker who knows it gets through.

Rule 1: no item that was fitted or calibrated on is ever counted.
Rule 2: an item is attacked only if the model's prediction verifiably changed.
Rule 3: readings come from the bundle's own programs, through the one runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import from_unit
from guard.calibration import auroc, rejections_band, wilson
from guard.offline.attacks.adaptive import METHODS, AdaptiveResult, Known, Method, adaptive
from guard.offline.compile import Program
from guard.offline.craft import CraftedSet, off_grid
from guard.offline.risk import DetectorExcess, Excess
from guard.runtime import Readings, Runtime

PROOF_RATE = 0.05  # the rate at which an attack must break the detectors known to be broken
PROOF_SHARE = 0.9
PROVING_DETECTORS = ("kernel_density", "feature_squeezing")
FEWEST = 200  # verified items for a row to be more than an indication


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    items: int

    @staticmethod
    def of(hits: NDArray[np.bool_]) -> Rate:
        count, items = int(hits.sum()), int(hits.size)
        low, high = wilson(count, items)
        return Rate(count / items if items else float("nan"), low, high, count, items)


@dataclass(frozen=True)
class Rates:
    """The shares of clean items that were promised."""

    reject: float
    flag: float


@dataclass(frozen=True)
class CleanRow:
    """How often inputs that nobody attacked are rejected and flagged."""

    name: str
    rejected: Rate
    flagged: Rate
    reject_band: tuple[int, int] | None = None  # where the number of rejections must lie, if a promise covers this row
    flag_band: tuple[int, int] | None = None


@dataclass(frozen=True)
class AttackRow:
    """One attack: what it does to the bare model, and what the guard makes of it."""

    attack: str
    setting: str  # seen | left out
    tried: int  # clean items that the model had right
    success: Rate  # of the attack against the bare model, on the grid
    auroc: float
    rejected: Rate
    flagged: Rate
    robust_accuracy: Rate  # rejected, or still classified right, among all tried
    detector_auroc: Mapping[str, float]
    thin: bool  # fewer than FEWEST verified items


@dataclass(frozen=True)
class ProofRow:
    """The same attack against one detector known to be broken."""

    detector: str
    budget: float
    success: Rate


@dataclass(frozen=True)
class AdaptiveRow:
    """An attacker who knows model, detectors, fusion and threshold."""

    budget: float
    steps: int
    methods: tuple[str, ...]
    fooled: Rate  # of the items: the model says another class
    passed_reject: Rate  # of the items: fooled, and not rejected
    passed_flag: Rate  # of the items: fooled, and not even flagged
    disagreement: float  # share of the items on which the attacked torch side and the served verdict differ
    proof: tuple[ProofRow, ...]

    @property
    def proven(self) -> bool:
        return bool(self.proof) and all(row.success.value >= PROOF_SHARE for row in self.proof)


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report states."""

    model: str
    bundle: str
    data: str
    seed: int
    grid: int | None
    reject_rate: float
    flag_rate: float
    calibration_items: int
    accuracy: Rate  # of the bare model on the clean items
    clean: tuple[CleanRow, ...]
    attacks: tuple[AttackRow, ...]
    adaptive: tuple[AdaptiveRow, ...]
    detectors: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        for row, plain in zip(self.adaptive, content["adaptive"], strict=True):
            plain["proven"] = row.proven
        return content


def clean_rows(
    runtime: Runtime,
    images: NDArray[np.float32],
    noisy: NDArray[np.float32],
    seed: int,
    rates: Rates,
) -> tuple[CleanRow, ...]:
    """Clean, snapped size-matched noise, and off-grid clean; unit-space images [item, ...]."""
    rows = []
    grid = runtime.spec.grid
    sources = {"clean": images, "noise of the attacks' size": noisy}
    if grid is not None:
        sources["off-grid clean"] = off_grid(images, grid, torch.Generator().manual_seed(seed))
    for name, values in sources.items():
        if len(values) == 0:
            continue
        p = read(runtime, values).p_value
        promised = name == "clean"
        items = runtime.calibration.items
        rows.append(
            CleanRow(
                name,
                Rate.of(p <= rates.reject),
                Rate.of(p <= rates.flag),
                rejections_band(rates.reject, items, len(values)) if promised else None,
                rejections_band(rates.flag, items, len(values)) if promised else None,
            )
        )
    return tuple(rows)


def attack_row(runtime: Runtime, crafted: CraftedSet, clean: Readings, setting: str, rates: Rates) -> AttackRow:
    """What the bundle makes of one attack's verified items; `clean` are the readings of all clean test items."""
    readings = read(runtime, crafted.attacked)
    rejected = readings.p_value <= rates.reject
    tried = crafted.tried
    handled = np.zeros(tried, dtype=bool)
    handled[: tried - len(rejected)] = True  # the attack failed: still classified right
    handled[tried - len(rejected) :] = rejected
    hits = np.zeros(tried, dtype=bool)
    hits[: len(rejected)] = True
    names = runtime.calibration.detectors
    return AttackRow(
        attack=crafted.attack,
        setting=setting,
        tried=tried,
        success=Rate.of(hits),
        auroc=auroc(clean.risk, readings.risk) if len(rejected) else float("nan"),
        rejected=Rate.of(rejected),
        flagged=Rate.of(readings.p_value <= rates.flag),
        robust_accuracy=Rate.of(handled),
        detector_auroc=detector_auroc(names, clean, readings) if len(rejected) else {},
        thin=len(rejected) < FEWEST,
    )


def detector_auroc(names: Sequence[str], clean: Readings, attacked: Readings) -> dict[str, float]:
    """AUROC of each detector alone, in its paper's direction: below 0.5 the attack makes it look calmer than clean."""
    return {name: auroc(clean.scores[:, d], attacked.scores[:, d]) for d, name in enumerate(names)}


@dataclass(frozen=True)
class Adversary:
    """Who attacks with full knowledge, from where, and for how long. Arrays are unit space, [item, ...]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    steps: int
    seed: int

    def attack(
        self,
        known: Known,
        start: NDArray[np.float32],
        *,
        budget: float,
        grid: int | None,
        methods: tuple[Method, ...] = METHODS,
    ) -> AdaptiveResult:
        return adaptive(
            known,
            torch.from_numpy(self.images),
            torch.from_numpy(self.labels),
            budget=budget,
            steps=self.steps,
            generator=torch.Generator().manual_seed(self.seed),
            grid=grid,
            start=torch.from_numpy(start),
            methods=methods,
        )


def adaptive_row(
    runtime: Runtime,
    programs: tuple[Program, ...],
    adversary: Adversary,
    start: NDArray[np.float32],
    *,
    budget: float,
    proof: tuple[ProofRow, ...],
) -> AdaptiveRow:
    """Attack the whole guard from a static attack's result, and count through the bundle's own programs."""
    manifest = runtime.bundle.manifest
    known = Excess(programs, runtime.calibration, manifest.flag_rate)
    result = adversary.attack(known, start, budget=budget, grid=runtime.spec.grid)
    readings = read(runtime, result.images.numpy())
    fooled = readings.prediction != adversary.labels
    passed = fooled & (readings.p_value > manifest.flag_rate)
    return AdaptiveRow(
        budget=budget,
        steps=adversary.steps,
        methods=METHODS,
        fooled=Rate.of(fooled),
        passed_reject=Rate.of(fooled & (readings.p_value > manifest.reject_rate)),
        passed_flag=Rate.of(passed),
        disagreement=float((passed != result.success.numpy()).mean()),
        proof=proof,
    )


def prove(
    runtime: Runtime,
    programs: tuple[Program, ...],
    adversary: Adversary,
    start: NDArray[np.float32],
    *,
    budget: float,
) -> tuple[ProofRow, ...]:
    """The same attack, on the same items, against detectors that the literature has broken, each alone."""
    rows = []
    names = runtime.calibration.detectors
    for name in PROVING_DETECTORS:
        program = next((p for p in programs if name in p.names), None)
        if program is not None:
            clean = torch.from_numpy(runtime.calibration.clean_scores[:, names.index(name)])
            known = DetectorExcess(program, name, clean, PROOF_RATE)
            found = adversary.attack(known, start, budget=budget, grid=runtime.spec.grid, methods=("selective",))
            rows.append(ProofRow(name, budget, Rate.of(found.success.numpy())))
    return tuple(rows)


def read(runtime: Runtime, unit: NDArray[np.float32], batch: int = 128) -> Readings:
    """Readings of unit-space images [item, ...], every program run on every item, in batches."""
    wire = from_unit(unit, runtime.spec)
    parts = [runtime.read(wire[i : i + batch], complete=True) for i in range(0, len(wire), batch)]
    if not parts:
        return runtime.read(wire[:0], complete=True)
    return Readings(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("logits", "scores", "risk", "p_value", "program", "detector_p")
        )
    )
