"""`guard evaluate`: a bundle, its work directory and fresh data -> tables, one JSON file and one page.

Rule 1: what is slow to make lies in `BUNDLE.work` and is taken up again: attacked items, guards fitted without a
family, runs of the adaptive attack.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from guard.answer_evidence import evidence_of
from guard.bundle import Bundle
from guard.columns import ColumnChoice
from guard.offline.adversary.descent import ALL_METHODS, METHODS
from guard.offline.adversary.runs import MAX_GUIDE_ITEMS
from guard.offline.attacks.feature_model import as_allowed
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.stage import craft_all
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.data.harmless_noise import noises_of
from guard.offline.data.input_kind import kind_for
from guard.offline.evaluation.adaptive_rows import adaptive_stage
from guard.offline.evaluation.clean_rows import MAX_NOISY_ITEMS, NOISE_SIZE_POINTS, shift_items
from guard.offline.evaluation.effort import Effort, Size
from guard.offline.evaluation.forecast import seconds_per_item, seconds_to_read
from guard.offline.evaluation.grey_second import other_networks, with_other_networks
from guard.offline.evaluation.left_out import refit_all, stays, unmade
from guard.offline.evaluation.left_out_guard import LeftOut
from guard.offline.evaluation.measure import measure
from guard.offline.evaluation.suite_rows import Further
from guard.offline.evidence.batches import one_batch
from guard.offline.findings.evaluation import Evaluation
from guard.offline.job.accuracy import check_accuracy
from guard.offline.job.job import check_data, open_job
from guard.offline.job.suite import Suite
from guard.offline.preflight.sample import sample_of
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.report.page import to_html, to_json
from guard.offline.training.build import Prepared, read_seconds
from guard.offline.training.reopen import Work
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import write_bytes
from guard.offline.work.lock import locked
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.progress import Stage, Stages
from guard.offline.work.tables import STAGE_WIDTH_COLUMNS, new_table, plain_lines, shares
from guard.offline.work.tasks import Executor, check_sendable
from guard.offline.work.text import duration
from guard.offline.work.threads import choose_threads

FULL_MINUTES, QUICK_MINUTES, SUITE_MINUTES = 40.0, 4.0, 20.0
FULL_ITEMS_AND_STEPS = (300, 50, 100)  # items an attack is tried on; items and steps of the adaptive attack
QUICK_ITEMS_AND_STEPS = (100, 20, 30)
MAX_SHIFTED_ITEMS, MAX_QUICK_SHIFTED_ITEMS = 1000, 300  # items that are shifted, at most


@dataclass(frozen=True)
class Wish:
    """The settings of one run of `guard evaluate`."""

    seed: int = 0
    quick: bool = False  # fewer items and steps, no family left out: an indication only
    full: bool = False  # every method of the adaptive attack
    minutes: float | None = None  # for all but the suite
    suite: Suite | None = None
    suite_minutes: float = SUITE_MINUTES
    data_layout: str | None = None  # of arrays with three or four axes
    accept_accuracy: bool = False  # go on where the model is seldom right on the data
    choice: ColumnChoice | None = None  # of a table's columns; None: as the bundle was trained
    adaptive_items: int | None = None  # of the adaptive attack; None: as many as are usual
    grey_second: str | None = None  # a bundle or model whose second networks an attacker has in place of the guard's
    executor: Executor | None = None  # what computes tasks; None: threads of this process

    def effort(self, work: WorkDirectory) -> Effort:
        items, usual, steps = QUICK_ITEMS_AND_STEPS if self.quick else FULL_ITEMS_AND_STEPS
        sizes = (items, usual if self.adaptive_items is None else self.adaptive_items, steps)
        shifted = MAX_QUICK_SHIFTED_ITEMS if self.quick else MAX_SHIFTED_ITEMS
        deadline = time.monotonic() + 60 * self.time
        methods = ALL_METHODS if self.full else METHODS
        executor = OWN_THREADS if self.executor is None else self.executor
        return Effort(*sizes, self.seed, work, deadline, shifted, methods, checked=not self.quick, executor=executor)

    @property
    def cuts(self) -> tuple[str, ...]:
        """What is cut of the report on request, in words."""
        if not self.quick:
            return ()
        items, usual, steps = QUICK_ITEMS_AND_STEPS
        adaptive_items = usual if self.adaptive_items is None else self.adaptive_items
        return (
            f"--quick: each attack is tried on {items} items, the adaptive one on {adaptive_items} for {steps} steps, "
            "no family is left out, and whether more steps, restarts or budget get further is not asked",
        )

    @property
    def time(self) -> float:
        """The minutes for all but the suite, as asked for or by default."""
        return self.minutes if self.minutes is not None else QUICK_MINUTES if self.quick else FULL_MINUTES


def evaluate_bundle(bundle: Bundle, data: Path, out: Path, wish: Wish, stages: Stages) -> Evaluation:
    """Evaluate a bundle on fresh data, and write `report.json` and `report.html` into `out`.

    Raises:
        BundleError, DataError, ModelError: before anything is written.
    """
    work = Work.beside(bundle)
    check_sendable(wish.executor, closed=bool(work.job.get("answers")))
    with locked(work.directory):
        return evaluated(bundle, work, data, out, wish, stages)


def evaluated(bundle: Bundle, work: Work, data: Path, out: Path, wish: Wish, stages: Stages) -> Evaluation:
    """Evaluate a bundle whose work directory is held; raises as `evaluate_bundle` does."""
    effort = replace(wish.effort(work.directory), cuts=(*guard_cuts(bundle), *wish.cuts))
    with stages.stage("open bundle and data") as progress:
        held_out, aside = work.held_out(bundle, data, layout=wish.data_layout, choice=wish.choice)
        subject = work.subject(bundle)
        work = work.fitting(subject.classifier)
        for note in held_out.notes:
            progress.say(note)
        progress.say(str(check_accuracy(subject.classifier, held_out, accepted=wish.accept_accuracy)))
        choose_threads(subject.classifier.graph, one_batch(held_out.images))
        if aside:
            progress.say(str(aside))
        grey = grey_guard(subject, wish)
    with stages.stage("measure speeds") as progress:
        announce(forecast(bundle, subject, held_out, work, effort, quick=wish.quick, grey=grey), wish, progress)
    left_out: tuple[LeftOut, ...] = ()
    if not wish.quick:
        with stages.stage("fit without each family") as progress:
            job = replace(work.job_of(bundle), executor=wish.executor)
            opening = partial(prepared, work, bundle, progress, wish.executor)
            left_out = refit_all(job, opening, bundle, progress.note)
            few = stays(job.recipe, work.directory, bundle)
            for line in few:
                progress.say(line)
        effort = replace(effort, cuts=(*effort.cuts, *few))
    with stages.stage("measure on held-out data") as progress:
        further = Further(wish.suite, 60 * wish.suite_minutes, work.directory) if wish.suite else None
        evaluation = measure(
            subject,
            held_out,
            work.recipe,
            effort,
            progress,
            left_out=left_out,
            further=further,
            answers=evidence_of(bundle),
            grey=grey,
        )
    with stages.stage("write report"):
        write_report(evaluation, out)
    return evaluation


def grey_guard(subject: OpenedGuard, wish: Wish) -> OpenedGuard | None:
    """Return the guard with the second networks that an attacker has in place of its own; None where none are given."""
    if wish.grey_second is None:
        return None
    spec = subject.classifier.spec
    return with_other_networks(subject, other_networks(wish.grey_second, spec, subject.classifier))


def guard_cuts(bundle: Bundle) -> tuple[str, ...]:
    """Return what was cut of a guard when it was trained, as its manifest says."""
    return tuple(map(str, bundle.manifest.provenance.get("cuts", {}).get("guard", ())))


def prepared(work: Work, bundle: Bundle, progress: Stage, executor: Executor | None = None) -> Prepared:
    """Return what the served bundle was fitted on: same data, same attacked items. Raises DataError, BundleError."""
    job = replace(work.job_of(bundle), executor=executor)
    classifier, data = open_job(job, kept=job.work)
    check_data(job, data)
    work.same_splits(data.splits)
    data = sample_of(job, classifier, data, job.work).data
    return Prepared(classifier, data, craft_all(job, classifier, data, progress))


def forecast(
    bundle: Bundle,
    subject: OpenedGuard,
    held_out: Dataset,
    work: Work,
    effort: Effort,
    *,
    quick: bool,
    grey: OpenedGuard | None = None,
) -> Mapping[str, float | None]:
    """Return the expected seconds by what they are for; None where they are not known yet."""
    attacks = (*work.recipe.attacks, *work.recipe.left_out)
    items = min(effort.attack_items, len(held_out.images))
    read_s = seconds_to_read(subject.cascade, held_out)
    found: dict[str, float | None] = {
        f"{len(attacks)} attacks on {items} items": items
        * seconds_per_item(
            as_allowed(TorchModel(subject.classifier.graph), grid_for(subject.cascade.spec)), attacks, held_out
        )
    }
    if not quick and (left := unmade(work.recipe, work.directory, bundle)):
        build_s = read_seconds(work.directory)
        found[f"guards without a family, {len(left)} of them"] = (
            None if build_s is None else math.ceil(len(left) / effort.executor.processes) * build_s
        )
    kinds = noises_of(kind_for(subject.cascade.spec).name, held_out.item_shape[0])
    harmless = 2 * len(kinds) * NOISE_SIZE_POINTS * min(MAX_NOISY_ITEMS, len(held_out.images))  # all, and each alone
    readings = len(held_out.images) + 2 * len(attacks) * items + harmless  # clean ones, each attack's items and noise
    found[f"{readings} readings at {1 / read_s:.0f} a second"] = readings * read_s
    if shifts := kind_for(subject.cascade.spec).shifts:
        shifted = shift_items(subject, held_out, effort)
        found[f"{len(shifts)} shifts of {shifted} items"] = len(shifts) * shifted * read_s
    if work.recipe.adaptive_budgets:
        size = Size(effort.adaptive_items, effort.adaptive_steps)
        stage = adaptive_stage(subject, held_out, work.recipe, effort, grey=grey)
        first = 2 * size.items + MAX_GUIDE_ITEMS
        few = held_out.take(slice(first))
        per = replace(stage, held_out=few).per_item_step(read(subject.cascade, few.images))
        stronger = ", and stronger ones" if effort.checked else ""
        found[f"adaptive attack, {size.items} items x {size.steps} steps{stronger}"] = (
            per * size.items * (size.steps + 1)
        )
    return found


def announce(costs: Mapping[str, float | None], wish: Wish, progress: Stage) -> None:
    """Report the expected times before anything slow begins."""
    table = new_table("expected", [shares("takes")])
    for what, seconds in costs.items():
        table.add_row(what, "unknown" if seconds is None else duration(seconds))
    if wish.suite:
        name = f"suite {wish.suite.name}, {len(wish.suite.attacks)} attacks, beside that"
        table.add_row(name, f"{wish.suite_minutes:g} min at most")
    for line in plain_lines([table], width_columns=STAGE_WIDTH_COLUMNS):
        progress.say(line)
    known = sum(seconds for seconds in costs.values() if seconds is not None)
    progress.say(
        f"together about {duration(known)} of {wish.time:g} min"
        + (": the adaptive attack will be made smaller to fit" if known > 60 * wish.time else "")
    )


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write the two files of the report, each whole or not at all."""
    pages = {"report.json": to_json(evaluation), "report.html": to_html(evaluation)}
    for name, content in pages.items():
        write_bytes(out / name, content.encode())
