"""The order in which an evaluation is made: clean items, each attack, then the attacker who knows everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.offline.compile import Program
from guard.offline.craft import CraftedSet, craft
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evaluate import (
    AdaptiveRow,
    Adversary,
    Evaluation,
    Rate,
    Rates,
    adaptive_row,
    attack_row,
    clean_rows,
    prove,
    read,
)
from guard.offline.model.classifier import Classifier
from guard.offline.progress import Stage
from guard.offline.recipe import Recipe
from guard.runtime import Runtime


@dataclass(frozen=True)
class Subject:
    """What is measured: the bundle at work, and the torch side that an attacker differentiates."""

    classifier: Classifier
    programs: Mapping[str, Sequence[Detector]]
    heads: Mapping[str, Head]
    runtime: Runtime

    def smooth(self) -> tuple[Program, ...]:
        """The programs with the attacker's surrogate derivatives."""
        return tuple(
            Program(self.classifier, detectors, [self.heads[d.name] for d in detectors], smooth=True)
            for detectors in self.programs.values()
        )


@dataclass(frozen=True)
class HeldOut:
    """Clean items that nothing was fitted or calibrated on; unit space."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    name: str


@dataclass(frozen=True)
class Effort:
    """How much the evaluation may do."""

    attack_items: int  # clean items that each attack is tried on
    adaptive_items: int
    adaptive_steps: int
    seed: int
    work: Path  # crafted shards are kept here


def measure(subject: Subject, held_out: HeldOut, recipe: Recipe, effort: Effort, progress: Stage) -> Evaluation:
    """Everything that the report states."""
    runtime, manifest = subject.runtime, subject.runtime.bundle.manifest
    rates = Rates(manifest.reject_rate, manifest.flag_rate)
    crafted = [
        (setting, found)
        for setting, attacks in (("seen", recipe.attacks), ("left out", recipe.left_out))
        for found in craft(
            subject.classifier.graph,
            held_out.images[: effort.attack_items],
            held_out.labels[: effort.attack_items],
            held_out.hashes[: effort.attack_items],
            attacks,
            grid=runtime.spec.grid,
            fingerprint=subject.classifier.spec.fingerprint,
            work=effort.work,
            seed=effort.seed,
            progress=progress.items,
        )
    ]
    clean = read(runtime, held_out.images)
    noise = np.concatenate([np.zeros_like(held_out.images[:0]), *(found.noise for _, found in crafted)])
    progress.note("clean items")
    return Evaluation(
        model=manifest.model.name,
        bundle=subject.runtime.bundle.digest,
        data=f"{Path(held_out.name).name} ({len(held_out.images)} held-out items)",
        seed=effort.seed,
        grid=runtime.spec.grid,
        calibration_items=runtime.calibration.items,
        accuracy=Rate.of(clean.prediction == held_out.labels),
        clean=clean_rows(runtime, held_out.images, noise, effort.seed, rates),
        attacks=tuple(attack_row(runtime, found, clean, setting, rates) for setting, found in crafted),
        adaptive=adaptive_rows(subject, held_out, recipe, effort, [found for _, found in crafted], progress),
        detectors=runtime.calibration.detectors,
        reject_rate=rates.reject,
        flag_rate=rates.flag,
    )


def adaptive_rows(
    subject: Subject,
    held_out: HeldOut,
    recipe: Recipe,
    effort: Effort,
    crafted: Sequence[CraftedSet],
    progress: Stage,
) -> tuple[AdaptiveRow, ...]:
    """One row a budget, on the first items that the model has right; the proof of strength is at the largest budget."""
    if not recipe.adaptive_budgets:
        return ()
    programs, runtime = subject.smooth(), subject.runtime
    right = np.flatnonzero(read(runtime, held_out.images).prediction == held_out.labels)[: effort.adaptive_items]
    adversary = Adversary(held_out.images[right], held_out.labels[right], effort.adaptive_steps, effort.seed)
    starts = {budget: static_start(held_out, right, crafted, budget) for budget in recipe.adaptive_budgets}
    largest = max(starts)
    progress.note("proving the adaptive attack")
    proof = prove(runtime, programs, adversary, starts[largest], budget=largest)
    rows = []
    for budget, start in starts.items():
        progress.note(f"adaptive attack at {budget:g}")
        rows.append(adaptive_row(runtime, programs, adversary, start, budget=budget, proof=proof))
    return tuple(rows)


def static_start(
    held_out: HeldOut, index: NDArray[np.int64], crafted: Sequence[CraftedSet], budget: float
) -> NDArray[np.float32]:
    """For each item the static L-infinity attack's result within the budget, or the clean item where there is none."""
    start = held_out.images[index].copy()
    for found in crafted:
        if found.norm == "linf" and found.budget is not None and found.budget <= budget + 1e-9:
            places = {value: place for place, value in enumerate(found.hashes.tolist())}
            for row, item in enumerate(index):
                if (place := places.get(str(held_out.hashes[item]))) is not None:
                    start[row] = found.attacked[place]
    return start
