"""`guard train`: a model and clean data -> a bundle, stage by stage.

Rule 1: until the last stage nothing is at `--out`; what is slow to make lies in `OUT.work` and is taken up again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import from_unit
from guard.bundle import Bundle
from guard.errors import BundleError, ConfigError
from guard.offline.calibrate import Calibrator, pool
from guard.offline.compile import Cleaner, Parity, Program, check_parity, compile_programs
from guard.offline.craft import CraftedSet
from guard.offline.crafting import craft_to_learn
from guard.offline.data import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.fit import BATCH, fit_heads, save_heads
from guard.offline.job import Data, Job, check_data, open_job
from guard.offline.measure import Effort, Subject, measure
from guard.offline.model.classifier import Classifier
from guard.offline.plan import FLOOR, read_plan
from guard.offline.progress import Stages, short
from guard.offline.report import to_html, to_json
from guard.offline.threads import choose_threads
from guard.runtime import Runtime, Session

PARITY_ITEMS = 100
ATTACK_ITEMS = 300  # held-out items that each attack is tried on where no time is given


@dataclass(frozen=True)
class Prepared:
    """Everything that fitting starts from."""

    classifier: Classifier
    data: Data
    crafted: tuple[CraftedSet, ...]  # of the heads and combiner splits


def train(job: Job, stages: Stages) -> Bundle:
    """Craft, fit, compile, calibrate, measure, and write the bundle.

    Raises:
        GuardError: whatever is wrong with model, data, recipe or promise, before anything is at `job.out`.
    """
    return finish(job, prepare(job, stages), stages)


def prepare(job: Job, stages: Stages) -> Prepared:
    """Open model and data, check the promise, and craft the attacks to learn from."""
    if job.out.exists():
        raise BundleError(f"{job.out} exists, and a bundle is never changed; name another --out or remove it first")
    with stages.stage("open model and data"):
        classifier, data = open_job(job)
        check_data(job, classifier, data)
        job.recipe.programs([tap.name for tap in classifier.taps])
        if not job.recipe.adaptive_budgets:
            raise ConfigError(f"recipe {job.recipe.name}: [adaptive] budgets = [...] is missing: no report without it")
        write_work(job, data)
        choose_threads(classifier.graph, torch.from_numpy(data.images[:BATCH]), job.threads)
    with stages.stage("craft attacks") as progress:
        crafted = craft_to_learn(job, classifier, data, progress)
        for found in crafted:
            few = f", wanted {FLOOR}" if len(found) < FLOOR else ""
            progress.say(f"  {short(found.attack, 36):<36} fools the model on {len(found)} of {found.tried}{few}")
    return Prepared(classifier, data, crafted)


def finish(job: Job, prepared: Prepared, stages: Stages) -> Bundle:
    """Fit, compile, calibrate, measure, and write the bundle."""
    classifier, data, crafted = prepared.classifier, prepared.data, prepared.crafted
    programs = job.recipe.programs([tap.name for tap in classifier.taps])
    with stages.stage("fit detectors") as progress:
        heads = fit(job, prepared, programs, progress.note)
        save_heads(heads, job.work / "heads")
    with stages.stage("compile to ONNX"):
        modules = {name: Program(classifier, ds, [heads[d.name] for d in ds]) for name, ds in programs.items()}
        cleaners = {denoiser.name: Cleaner(denoiser, classifier.spec.input) for denoiser in job.recipe.repairs}
        wire = from_unit(data.images[data.part(Split.COMBINER)][:PARITY_ITEMS], classifier.spec.input)
        compiled = compile_programs(modules, cleaners, wire)
    with stages.stage("calibrate"):
        calibrator = Calibrator(job, classifier, programs, compiled, data)
        calibration, leaks = calibrator.calibrate(crafted)
        provisional = calibrator.bundle(job.work / "provisional", calibration, leaks, {})
        parity = parities(modules, provisional, wire)
    with stages.stage("measure on held-out data") as progress:
        subject = Subject(classifier, programs, heads, Runtime(provisional))
        effort = effort_of(job)
        evaluation = measure(subject, data.held_out(), job.recipe, effort, progress)
    with stages.stage("write bundle"):
        reports = {"report.json": to_json(evaluation).encode(), "report.html": to_html(evaluation).encode()}
        bundle = calibrator.bundle(job.out, calibration, leaks, reports, parity)
        shutil.rmtree(job.work / "provisional")
    return bundle


def effort_of(job: Job) -> Effort:
    """What the report may cost: as asked for, or as planned."""
    plan = read_plan(job.work) if job.minutes is not None else None
    items = job.attack_items or (ATTACK_ITEMS if plan is None else plan.attack_items)
    return Effort(items, job.adaptive_items, job.adaptive_steps, job.seed, job.work / "crafted")


def write_work(job: Job, data: Data) -> None:
    """The split by content hash, and what the model and recipe were, for `guard evaluate`."""
    job.work.mkdir(parents=True, exist_ok=True)
    (job.work / "splits.json").write_text(json.dumps(data.splits, indent=0, sort_keys=True), encoding="utf-8")
    settings = {key: value for key, value in asdict(job).items() if key not in ("recipe", "out")}
    if Path(job.model).is_file():
        settings["model"] = str(Path(job.model).resolve())  # found again from wherever `guard evaluate` is called
    settings |= {"recipe": {"name": job.recipe.name, "raw": job.recipe.raw}}
    (job.work / "job.json").write_text(json.dumps(settings, indent=2, default=str), encoding="utf-8")


def fit(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    note: Callable[[str], None],
) -> dict[str, Head]:
    data = prepared.data
    part = data.part(Split.HEADS)
    attacked, noisy, families = pool(prepared.crafted, data, Split.HEADS)
    return fit_heads(
        prepared.classifier,
        [d for detectors in programs.values() for d in detectors],
        clean=data.images[part],
        labels=data.labels[part],
        noisy=noisy,
        attacked=attacked,
        families=families,
        seed=job.seed,
        report=note,
    )


def parities(modules: Mapping[str, Program], bundle: Bundle, wire: NDArray[np.float32]) -> dict[str, Parity]:
    """Each written program against torch. Raises ParityError."""
    found = {}
    for spec in bundle.manifest.programs:
        session = Session(bundle.path / spec.file, device="cpu", threads=None)
        found[spec.name] = check_parity(spec.name, modules[spec.name], session, wire)
    return found
