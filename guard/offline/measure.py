"""The order in which an evaluation is made: clean items, each attack, then the attacker who knows everything."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.offline.adversary import AdaptiveStage, Size, spoken_budget
from guard.offline.attacks.adaptive import METHODS
from guard.offline.attacks.attack import Attack, Measure, Model
from guard.offline.attacks.directions import Method
from guard.offline.craft import CraftedSet, craft
from guard.offline.engine import attack_model
from guard.offline.evaluate import attack_row, clean_rows, detection, read, unattacked
from guard.offline.findings import (
    FEWEST,
    PROMISED,
    AdaptiveRow,
    Detection,
    Evaluation,
    LeftOutRow,
    Promise,
    Rate,
    caught_at,
)
from guard.offline.progress import Stage
from guard.offline.recipe import Recipe
from guard.offline.subject import HeldOut, Subject, detector_rows
from guard.runtime import Readings, Runtime

SYMBOLS: Mapping[Measure, str] = {"linf": " L∞", "l2": " L2", "l1": " L1", "l0": " L0", "none": ""}
GROWTH = 1.15  # over the items that the success rate asks for, since it is itself measured


@dataclass(frozen=True)
class Effort:
    """How much the evaluation may do."""

    attack_items: int  # clean items that each attack is tried on; more where too few fool the model
    adaptive_items: int
    adaptive_steps: int
    seed: int
    work: Path  # crafted shards are kept here
    deadline: float | None = None  # of `time.monotonic()`; the adaptive attack is sized to end by then
    methods: tuple[Method, ...] = METHODS  # of the adaptive attack

    def seconds_left(self) -> float:
        return math.inf if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True)
class LeftOut:
    """A guard that was fitted without one family of attacks, at work."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    runtime: Runtime


def measure(
    subject: Subject,
    held_out: HeldOut,
    recipe: Recipe,
    effort: Effort,
    progress: Stage,
    *,
    left_out: Sequence[LeftOut] = (),
) -> Evaluation:
    """Everything that the report states. Raises as `craft` does."""
    runtime, manifest = subject.runtime, subject.runtime.bundle.manifest
    promises = tuple(Promise.of(rate, runtime.calibration.items) for rate in PROMISED)
    attacks = labels_of((*recipe.attacks, *recipe.left_out), runtime.spec.grid)
    model = attack_model(subject.classifier, held_out.images, effort.work.parent)
    crafted = {
        label: craft_enough(model, subject, held_out, attack, effort, progress) for label, attack in attacks.items()
    }
    progress.note("clean items")
    clean = read(runtime, held_out.images)
    without = {guard.family: Other(guard, read(guard.runtime, held_out.images)) for guard in left_out}
    return Evaluation(
        model=manifest.model.name,
        bundle=runtime.bundle.digest,
        data=f"{Path(held_out.name).name} ({len(held_out.images)} held-out items)",
        seed=effort.seed,
        grid=runtime.spec.grid,
        reject_rate=manifest.reject_rate,
        flag_rate=manifest.flag_rate,
        calibration_items=runtime.calibration.items,
        promises=promises,
        accuracy=Rate.of(clean.prediction == held_out.labels),
        clean=clean_rows(
            runtime, clean, unattacked(held_out.images, crafted, runtime.spec.grid, effort.seed), promises
        ),
        attacks=tuple(
            attack_row(
                runtime,
                found,
                clean,
                promises,
                label=label,
                setting="seen" if attacks[label] in recipe.attacks else "never seen",
                left_out=without[found.family].detection(found, promises) if found.family in without else None,
            )
            for label, found in crafted.items()
        ),
        left_out=tuple(other.row(promises) for other in without.values()),
        adaptive=adaptive_rows(subject, held_out, recipe, effort, list(crafted.values()), clean, promises, progress),
        detectors=detector_rows(subject.programs),
    )


@dataclass(frozen=True)
class Other:
    """A guard fitted without a family, and its readings of the clean test items."""

    guard: LeftOut
    clean: Readings

    def detection(self, crafted: CraftedSet, promises: Sequence[Promise]) -> Detection:
        return detection(read(self.guard.runtime, crafted.attacked), self.clean, promises)

    def row(self, promises: Sequence[Promise]) -> LeftOutRow:
        bundle = self.guard.runtime.bundle
        return LeftOutRow(
            self.guard.family, self.guard.fitted_on, bundle.digest, caught_at(promises, self.clean.p_value)
        )


def labels_of(attacks: Sequence[Attack], grid: int | None) -> dict[str, Attack]:
    """A name for people, each another: pgd L∞ 8/255."""
    found: dict[str, Attack] = {}
    for attack in attacks:
        size = "" if attack.budget is None else f" {size_text(attack.budget, attack.norm, grid)}"
        label = f"{attack.name}{SYMBOLS[attack.norm]}{size}"
        alike = sum(name.split(" #")[0] == label for name in found)
        found[f"{label} #{alike + 1}" if alike else label] = attack
    return found


def size_text(budget: float, norm: Measure, grid: int | None) -> str:
    """8/255, 0.5 or, of an item's values, 6%."""
    return f"{budget:.1%}" if norm == "l0" else spoken_budget(budget, grid if norm == "linf" else None)


def craft_enough(
    model: Model, subject: Subject, held_out: HeldOut, attack: Attack, effort: Effort, progress: Stage
) -> CraftedSet:
    """Tried on `attack_items`, and on more where fewer than FEWEST of them fool the model and there are more."""
    tried = min(effort.attack_items, len(held_out.images))
    while True:
        (found,) = craft(
            model,
            held_out.images[:tried],
            held_out.labels[:tried],
            held_out.hashes[:tried],
            [attack],
            grid=subject.runtime.spec.grid,
            fingerprint=subject.classifier.spec.fingerprint,
            work=effort.work,
            seed=effort.seed,
            progress=progress.items,
        )
        wanted = math.ceil(GROWTH * tried * FEWEST / max(len(found), 1))
        if len(found) >= FEWEST or effort.attack_items < FEWEST or tried == len(held_out.images):
            return found
        tried = min(wanted, 4 * tried, len(held_out.images))


def adaptive_rows(
    subject: Subject,
    held_out: HeldOut,
    recipe: Recipe,
    effort: Effort,
    crafted: Sequence[CraftedSet],
    clean: Readings,
    promises: tuple[Promise, ...],
    progress: Stage,
) -> tuple[AdaptiveRow, ...]:
    """As much of it as there is time for."""
    if not recipe.adaptive_budgets:
        return ()
    wanted = Size(effort.adaptive_items, effort.adaptive_steps)
    work = effort.work.with_name("adaptive")
    budgets, methods = recipe.adaptive_budgets, effort.methods
    stage = AdaptiveStage(subject, held_out, budgets, promises, wanted, effort.seed, work, methods)
    progress.note("speed of the adaptive attack")
    size = stage.sized(clean, None if effort.deadline is None else effort.seconds_left, progress.say)
    return stage.rows(clean, crafted, size, progress.items)
