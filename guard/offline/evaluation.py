"""`guard evaluate`: a bundle, its work directory and fresh data -> tables, one JSON file and one page.

Rule 1: what is slow to make lies in `BUNDLE.work` and is taken up again: attacked items, guards fitted without a
family, runs of the adaptive attack.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from guard.bundle import Bundle
from guard.offline.adversary import GUIDES, AdaptiveStage, Size, duration
from guard.offline.build import Prepared, read_seconds
from guard.offline.crafting import craft_all
from guard.offline.evaluate import read
from guard.offline.findings import PROMISED, Evaluation, Promise
from guard.offline.fit import one_batch
from guard.offline.forecast import seconds_per_item
from guard.offline.job import check_data, open_job
from guard.offline.measure import Effort, LeftOut, measure
from guard.offline.progress import Stage, Stages
from guard.offline.refit import families, refit_all
from guard.offline.reopen import Work
from guard.offline.report import to_html, to_json
from guard.offline.subject import HeldOut, Subject
from guard.offline.threads import choose_threads

MINUTES = 40.0
FULL = (300, 50, 100)  # items an attack is tried on; items and steps of the adaptive attack
QUICK = (100, 20, 30)


def evaluate_bundle(
    bundle: Bundle, data: Path, out: Path, *, quick: bool, seed: int, stages: Stages, minutes: float = MINUTES
) -> Evaluation:
    """Write `report.json` and `report.html` into `out`. `quick` leaves no family out, and is an indication only.

    Raises:
        BundleError, DataError, ModelError: before anything is written.
    """
    deadline = time.monotonic() + 60 * minutes
    work = Work.beside(bundle)
    with stages.stage("open bundle and data") as progress:
        held_out, aside = work.held_out(bundle, data)
        subject = work.subject(bundle)
        choose_threads(subject.classifier.graph, one_batch(held_out.images))
        if aside:
            progress.say(f"put aside {aside} items that the bundle was fitted or calibrated on")
    effort = Effort(*(QUICK if quick else FULL), seed, work.path / "crafted", deadline)
    with stages.stage("measure speeds") as progress:
        announce(forecast(subject, held_out, work, effort, quick=quick), minutes, progress)
    left_out: tuple[LeftOut, ...] = ()
    if not quick:
        with stages.stage("fit without each family") as progress:
            left_out = refit_all(work.job_of(bundle), lambda: prepared(work, bundle, progress), bundle, progress.note)
    with stages.stage("measure on held-out data") as progress:
        evaluation = measure(subject, held_out, work.recipe, effort, progress, left_out=left_out)
    write_report(evaluation, out)
    return evaluation


def prepared(work: Work, bundle: Bundle, progress: Stage) -> Prepared:
    """What the served bundle was fitted on: the same data, the same attacked items. Raises DataError, BundleError."""
    job = work.job_of(bundle)
    classifier, data = open_job(job)
    check_data(job, classifier, data)
    work.same_splits(data.splits)
    return Prepared(classifier, data, craft_all(job, classifier, data, progress))


def forecast(
    subject: Subject, held_out: HeldOut, work: Work, effort: Effort, *, quick: bool
) -> Mapping[str, float | None]:
    """Seconds by what they are for; None where nobody knows yet."""
    attacks = (*work.recipe.attacks, *work.recipe.left_out)
    items = min(effort.attack_items, len(held_out.images))
    found: dict[str, float | None] = {
        f"{len(attacks)} attacks on {items} items": items
        * seconds_per_item(subject.classifier.graph, attacks, held_out)
    }
    if not quick and (left := families(work.recipe)):
        build_s = read_seconds(work.path)
        found[f"{len(left)} guards without a family"] = None if build_s is None else len(left) * build_s
    if work.recipe.adaptive_budgets:
        size = Size(effort.adaptive_items, effort.adaptive_steps)
        calibration = subject.runtime.calibration
        promises = tuple(Promise.of(rate, calibration.items) for rate in PROMISED)
        budgets, methods = work.recipe.adaptive_budgets, effort.methods
        stage = AdaptiveStage(subject, held_out, budgets, promises, size, effort.seed, work.path, methods)
        first = 2 * size.items + GUIDES
        few = replace(held_out, images=held_out.images[:first], labels=held_out.labels[:first])
        per = replace(stage, held_out=few).per_item_step(read(subject.runtime, few.images))
        found[f"adaptive attack, {size.items} items x {size.steps} steps"] = per * size.items * (size.steps + 1)
    return found


def announce(costs: Mapping[str, float | None], minutes: float, progress: Stage) -> None:
    """Before anything slow begins."""
    for what, seconds in costs.items():
        progress.say(f"{what:<46} {'unknown' if seconds is None else duration(seconds)}")
    known = sum(seconds for seconds in costs.values() if seconds is not None)
    progress.say(
        f"together about {duration(known)} of {minutes:g} min"
        + (": the adaptive attack will be made smaller to fit" if known > 60 * minutes else "")
    )


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Each file whole or not at all."""
    pages = {"report.json": to_json(evaluation), "report.html": to_html(evaluation)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        partial = out / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(out / name)
