"""The order of an evaluation: crafted attacks, clean items, shifted items, the adaptive attack, the suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from guard.answer_evidence import AnswerCalibration
from guard.cascade import Readings
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import Model
from guard.offline.attacks.noise import noise_sizes
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.engine import attack_model
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.data.input_kind import kind_for
from guard.offline.evaluation.adaptive_rows import AdaptiveStage, adaptive_stage
from guard.offline.evaluation.answered_rows import AnsweredStage
from guard.offline.evaluation.attack_rows import Examined, Examiner, GuardReadings, Other, worst_of
from guard.offline.evaluation.clean_rows import class_rows, clean_rows, shift_items, shift_rows, unattacked
from guard.offline.evaluation.closed_findings import closed_findings
from guard.offline.evaluation.detector_rows import detector_rows, second_texts
from guard.offline.evaluation.effort import Effort
from guard.offline.evaluation.left_out_guard import LeftOut
from guard.offline.evaluation.pictures import Shown, exhibit_of
from guard.offline.evaluation.suite_rows import Further, Trial
from guard.offline.findings.attack_names import labels_of
from guard.offline.findings.evaluation import AdaptiveRow, AnsweredRow, Evaluation
from guard.offline.findings.intervals import Promise, Rate, promises_of
from guard.offline.job.recipe import Recipe
from guard.offline.programs.opened_guard import OpenedGuard, Rates
from guard.offline.work.progress import Stage

TRIED_ITEMS_FACTOR = 1.15  # over the items that the success rate asks for, since it is itself measured


def measure(
    subject: OpenedGuard,
    held_out: Dataset,
    recipe: Recipe,
    effort: Effort,
    progress: Stage,
    *,
    left_out: Sequence[LeftOut] = (),
    further: Further | None = None,
    answers: AnswerCalibration | None = None,
    grey: OpenedGuard | None = None,
) -> Evaluation:
    """Measure everything that the report states; `further` attacks have time of their own. Raises as `craft` does.

    `answers` calibrates a closed model's answers; `grey` is the guard with other second networks.
    """
    cascade, rates, spec = subject.cascade, subject.rates, subject.classifier.spec
    names = spec.output.labels
    promises = promises_of(cascade.calibration.items, len(held_out.images))
    attacks = labels_of((*recipe.attacks, *recipe.left_out), spec.input.grid)
    model = attack_model(subject.classifier, held_out.images, effort.work)
    crafted = {
        label: craft_enough(model, subject, held_out, attack, effort, progress) for label, attack in attacks.items()
    }
    progress.note("clean items")
    guard = GuardReadings.over(cascade, rates, subject.identity, held_out, subject.classifier.answering)
    examiner = Examiner(guard, promises, others(left_out, rates, held_out))
    clean = guard.clean
    examined = {
        label: examiner.examine(
            found, label=label, setting="seen" if attacks[label] in recipe.attacks else "never seen"
        )
        for label, found in crafted.items()
    }
    progress.note("shifted items")
    grid = grid_for(spec.input)
    sizes = noise_sizes(recipe.attacks, grid)
    noisy = unattacked(held_out.images, crafted, kind_for(spec.input), sizes, grid, effort.seed)
    shifts, shift_note = shift_rows(subject, held_out, promises, shift_items(subject, held_out, effort))
    answered = answered_stage(subject, answers, promises)
    stage = adaptive_stage(subject, held_out, recipe, effort, answered, grey)
    adaptive, cuts = adaptive_rows(stage, effort, list(crafted.values()), clean, progress)
    suite, tried = None, examined
    if further is not None:
        trial = Trial(further, examiner, model, subject, held_out, effort.seed, progress, effort.executor)
        suite, more = trial.run(attacks, examined)
        tried = examined | more
    return Evaluation(
        model=spec.name,
        guard=subject.identity,
        data=f"{Path(held_out.name).name} ({len(held_out.images)} held-out items)",
        seed=effort.seed,
        grid=spec.input.grid,
        reject_rate=rates.reject,
        flag_rate=rates.flag,
        calibration_items=cascade.calibration.items,
        promises=promises,
        accuracy=Rate.of(clean.prediction == held_out.labels),
        clean=(*clean_rows(subject, clean, noisy, promises), *shifts),
        attacks=tuple(found.row for found in examined.values()),
        left_out=tuple(other.row(promises) for other in examiner.others.values()),
        adaptive=adaptive,
        detectors=detector_rows(subject.programs),
        classes=class_rows(clean, held_out.labels, names, promises),
        shift_note=shift_note,
        skipped=recipe.skipped,
        worst=worst_of({label: found.fate for label, found in examined.items()}, promises, rates.reject),
        suite=suite,
        forwards=sum(program.floor - 1 for program in cascade.programs),
        closed=closed_findings(subject.classifier.answering, crafted.values()),
        answered=() if answered is None else answered_rows(answered, clean, held_out, examined),
        second=second_texts(subject.detectors),
        cuts=(*effort.cuts, *cuts),
        item_shape=tuple(spec.input.shape),
        class_count=spec.output.classes,
        exhibit=exhibit_of(guard, tried, promises, model, noisy.noise, names, Shown.of(subject.classifier, held_out)),
    )


def answered_stage(
    subject: OpenedGuard, answers: AnswerCalibration | None, promises: tuple[Promise, ...]
) -> AnsweredStage | None:
    """Return what judges items with a closed model's answers; None where the model was opened."""
    answering = subject.classifier.answering
    if answering is None or answers is None:
        return None
    return AnsweredStage(answers, answering, subject.cascade.spec.box, promises, subject.rates)


def answered_rows(
    stage: AnsweredStage, clean: Readings, held_out: Dataset, examined: Mapping[str, Examined]
) -> tuple[AnsweredRow, ...]:
    """Return the rows of clean items and of each attack's, judged with the closed model's answers, too."""
    attacked = (stage.row(label, found.readings, found.crafted.attacked) for label, found in examined.items())
    return (stage.clean_row(clean, held_out.images), *attacked)


def others(left_out: Sequence[LeftOut], rates: Rates, held_out: Dataset) -> dict[str, Other]:
    """Return the guards that were fitted without a family, by the family."""
    return {
        left.family: Other(
            left.family,
            left.fitted_on,
            GuardReadings.over(left.cascade, rates, left.identity, held_out),
            left.served_detectors,
        )
        for left in left_out
    }


def craft_enough(
    model: Model, subject: OpenedGuard, held_out: Dataset, attack: Attack, effort: Effort, progress: Stage
) -> CraftedSet:
    """Craft one attack on `attack_items`, and on more while too few for its family fool the model and more are left."""
    spec = subject.classifier.spec
    answering, store = subject.classifier.answering, effort.work.crafted
    run = CraftSetup(
        model,
        grid_for(spec.input),
        spec.fingerprint,
        store,
        effort.seed,
        answering=answering,
        executor=effort.executor,
    )
    least = attack.family.min_verified_items
    tried = min(effort.attack_items, len(held_out.images))
    while True:
        (found,) = craft(run, held_out.take(slice(tried)), [attack], progress=progress.items)
        wanted = math.ceil(TRIED_ITEMS_FACTOR * tried * least / max(len(found), 1))
        if len(found) >= least or effort.attack_items < least or tried == len(held_out.images):
            return found
        tried = min(wanted, 4 * tried, len(held_out.images))


def adaptive_rows(
    stage: AdaptiveStage, effort: Effort, crafted: Sequence[CraftedSet], clean: Readings, progress: Stage
) -> tuple[tuple[AdaptiveRow, ...], tuple[str, ...]]:
    """Run the adaptive attack, as much of it as there is time for; return its rows, and what was cut of it in words."""
    if not stage.budgets:
        return (), ()
    progress.note("speed of the adaptive attack")
    size = stage.sized(clean, None if effort.deadline is None else effort.seconds_left, progress.say)
    cut = "the adaptive attack is {0.items} items x {0.steps} steps instead of {1.items} x {1.steps}, for want of time"
    cuts = () if size == stage.wanted else (cut.format(size, stage.wanted),)
    return stage.rows(clean, crafted, size, progress.items), cuts
