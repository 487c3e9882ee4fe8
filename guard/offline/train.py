"""`guard train`: a model and clean data -> a bundle, stage by stage.

Rule 1: until the last stage nothing is at `--out`; what is slow to make lies in `OUT.work` and is taken up again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from guard.bundle import Bundle
from guard.choice_text import choice_text
from guard.errors import BundleError
from guard.offline.crafting.crafted_set import CraftedSet, Transfer
from guard.offline.crafting.cuts import crafting_cuts
from guard.offline.crafting.plan import MIN_FAMILY_ITEMS, read_plan
from guard.offline.crafting.stage import craft_all
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Head
from guard.offline.evaluation.effort import Effort
from guard.offline.evaluation.measure import measure
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.job.job import Job
from guard.offline.preflight.check import check, wrapped
from guard.offline.programs.opened_guard import Rates
from guard.offline.programs.verdicts import MOST_ITEMS, compare_verdicts
from guard.offline.report.page import to_html, to_json
from guard.offline.training.build import Prepared, compile_heads, fit, parities, write_seconds
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.candidates import with_chosen
from guard.offline.training.choose_detectors import DetectorChoice
from guard.offline.training.family_scores import FamilyScores
from guard.offline.training.fit_heads import save_heads, settled
from guard.offline.training.left_out_scores import left_out_scores
from guard.offline.training.reopen import write_work
from guard.offline.work.lock import locked
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.progress import Stages
from guard.offline.work.tables import STAGE_WIDTH_COLUMNS, counts, new_table, plain_lines, shares
from guard.offline.work.tasks import check_sendable

ATTACK_ITEMS = 300  # held-out items that each attack is tried on where no time is given


def train(job: Job, stages: Stages) -> Bundle:
    """Craft, fit, compile, calibrate, measure, and write the bundle.

    Raises:
        GuardError: whatever is wrong with model, data, recipe or promise, before anything is at `job.out`.
    """
    deadline = None if job.minutes is None else time.monotonic() + 60 * job.minutes
    refuse_taken(job)
    with locked(job.work):
        return finish(*prepare(job, stages), stages, deadline=deadline)


def refuse_taken(job: Job) -> None:
    """Refuse a place where there is something. Raises BundleError."""
    if job.out.exists():
        raise BundleError(f"{job.out} exists, and a bundle is never changed; name another --out or remove it first")


def prepare(job: Job, stages: Stages) -> tuple[Job, Prepared]:
    """Open model and data, check the promise, train a second network where asked to, and craft attacks to learn from.

    The job that is returned asks the second networks that there are.
    """
    refuse_taken(job)
    check_sendable(job.executor, closed=job.answers is not None)
    with stages.stage("check model and data") as progress:
        checked = check(
            job, lambda about, text: progress.say(*wrapped(about, text, STAGE_WIDTH_COLUMNS)), kept=job.work
        )
        classifier, data = checked.classifier, checked.data
        job = job.fitting(classifier)
        write_work(job, data)
        asked = checked.asked
    cuts: list[str] = []
    if asked.training is not None:
        with stages.stage("train second network") as progress:
            job = asked.trained(classifier, data, progress.say, progress.items)
            cuts += asked.training.cuts
    else:
        job = asked.trained(classifier, data, lambda _: None, lambda *_: None)
    with stages.stage("craft attacks") as progress:
        crafted = craft_all(job, classifier, data, progress, fitting_s=checked.cost.fitting_s)
        for line in crafted_lines(crafted):
            progress.say(line)
    return job, Prepared(classifier, data, crafted, (*cuts, *crafting_cuts(job, crafted)))


def crafted_lines(crafted: Sequence[CraftedSet]) -> list[str]:
    """Return a table of how many items each attack fools the model on, and of how many were wanted if they are few."""
    closed = any(found.transfer is not None for found in crafted)
    names = ("tried", "fool the model", *(("transfer",) if closed else ()))
    table = new_table("attack", [*map(counts, names), shares("")])
    for found in crafted:
        few = f"{MIN_FAMILY_ITEMS} at least wanted" if len(found) < MIN_FAMILY_ITEMS else ""
        moved = [] if found.transfer is None else [f"{found.transfer.share:.0%}"]
        table.add_row(found.attack, str(found.tried), str(len(found)), *moved, few)
    return [*plain_lines([table], width_columns=STAGE_WIDTH_COLUMNS), *transfer_lines(crafted)]


def transfer_lines(crafted: Sequence[CraftedSet]) -> list[str]:
    """Return how far a student and its closed model agree on attacked items; nothing where the model was opened."""
    found = [one.transfer for one in crafted if one.transfer is not None]
    if not found:
        return []
    whole = Transfer.together(found)
    return [
        *wrapped(
            "transfer",
            f"student and model name the same class of {whole.agreed / max(whole.tried, 1):.1%} of {whole.tried:,} "
            f"attacked items; {whole.share:.0%} of those that mislead the student fool the model: these alone count",
            STAGE_WIDTH_COLUMNS,
        )
    ]


def finish(job: Job, prepared: Prepared, stages: Stages, *, deadline: float | None = None) -> Bundle:
    """Fit, compile, calibrate, measure, and write the bundle; the adaptive attack is sized to end by `deadline`."""
    classifier, data = prepared.classifier, prepared.data
    job = job.fitting(classifier)
    began = time.monotonic()
    job, heads, choice, left_out = choose_and_fit(job, prepared, stages)
    save_heads(heads, job.work)
    programs = settled(prepared.programs(job), heads)
    with stages.stage("compile to ONNX"):
        graphs = compile_heads(job, prepared, programs, heads)
    with stages.stage("calibrate") as progress:
        calibrator = Calibrator(job, classifier, programs, graphs.files, data, choice)
        calibrated = calibrator.calibrate(prepared.crafted, left_out)
        progress.say(*wrapped("fusion", str(calibrated.kept), STAGE_WIDTH_COLUMNS))
        parity = parities(graphs, calibrated.cascade)
        rates = Rates(job.reject_rate, job.flag_rate)
        verdicts = compare_verdicts(
            calibrated.cascade, graphs.modules, data.part(Split.COMBINER).images[:MOST_ITEMS], rates
        )
        progress.say(f"  {verdicts}")
        write_seconds(job.work, time.monotonic() - began)
    with stages.stage("measure on held-out data") as progress:
        subject, effort = calibrator.opened(calibrated, heads), effort_of(job, prepared.cuts, deadline)
        test = data.part(Split.TEST)
        evaluation = measure(subject, test, job.recipe, effort, progress, answers=calibrated.answers)
    with stages.stage("write bundle"):
        reports = {"report.json": to_json(evaluation).encode(), "report.html": to_html(evaluation).encode()}
        said = {"guard": prepared.cuts, "report": evaluation.cuts[len(prepared.cuts) :]}
        return calibrator.bundle(job.out, calibrated, parity, reports, verdicts, cuts=said)


def choose_and_fit(
    job: Job, prepared: Prepared, stages: Stages
) -> tuple[Job, dict[str, Head], DetectorChoice | None, list[FamilyScores]]:
    """Choose detectors where the job limits their cost, and fit them; return that job, heads, choice, and scores.

    The scores are those of heads that do without a family.
    """
    remembered, chosen = EvidenceCache(prepared.classifier), None
    if job.cost is not None:
        with stages.stage("choose detectors") as progress:
            job, chosen = with_chosen(job, prepared, remembered, progress.note)
            for line in choice_lines(None if chosen is None else chosen.choice):
                progress.say(line)
    with stages.stage("fit detectors") as progress:
        programs = prepared.programs(job)
        heads = fit(job, prepared, programs, progress.note, remembered)
        if chosen is not None:
            return job, heads, chosen.choice, list(chosen.left_out)
        return job, heads, None, left_out_scores(job, prepared, programs, remembered, progress.note)


def choice_lines(choice: DetectorChoice | None) -> list[str]:
    """Return a table of what each number of forwards would catch, the chosen set marked, and what the next one buys."""
    if choice is None:
        return []
    headings = ("forwards", "worst left out", "mean")
    table = new_table("detectors", list(map(counts, headings)))
    for one in choice.frontier:
        mark = "* " if one.places == choice.chosen.places else ""
        table.add_row(mark + ", ".join(one.detectors), f"{one.forwards:.3g}", f"{one.worst:.0%}", f"{one.mean:.0%}")
    lines = plain_lines([table], width_columns=STAGE_WIDTH_COLUMNS)
    return [*lines, *wrapped("chosen", choice_text(choice.facts), STAGE_WIDTH_COLUMNS)]


def effort_of(job: Job, cuts: tuple[str, ...], deadline: float | None) -> Effort:
    """Return what the report may cost, as asked for or as planned; `cuts` are the guard's."""
    plan = read_plan(job.work) if job.minutes is not None else None
    items = job.attack_items or (ATTACK_ITEMS if plan is None else plan.attack_items)
    said = (*cuts, *(() if plan is None else plan.cuts))
    sizes = (items, job.adaptive_items, job.adaptive_steps)
    executor = OWN_THREADS if job.executor is None else job.executor
    return Effort(*sizes, job.seed, job.work, deadline, cuts=said, executor=executor)
