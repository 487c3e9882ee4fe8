"""`guard train`: a model and clean data -> a bundle, stage by stage.

Rule 1: until the last stage nothing is at `--out`; what is slow to make lies in `OUT.work` and is taken up again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from guard.bundle import Bundle
from guard.errors import BundleError, ConfigError
from guard.offline.build import Prepared, compile_heads, fit, parities, write_seconds
from guard.offline.calibrate import Calibrator
from guard.offline.craft import CraftedSet, craft
from guard.offline.data import Split
from guard.offline.fit import BATCH, save_heads
from guard.offline.job import Data, Job, check_data, open_job
from guard.offline.measure import Effort, measure
from guard.offline.model.classifier import Classifier
from guard.offline.progress import Stage, Stages, short
from guard.offline.report import to_html, to_json
from guard.offline.subject import Subject
from guard.offline.threads import choose_threads
from guard.runtime import Runtime

FEWEST_VERIFIED = 300  # of each attack, to fit on


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
        crafted = craft_all(job, classifier, data, progress)
        for found in crafted:
            few = f", wanted {FEWEST_VERIFIED}" if len(found) < FEWEST_VERIFIED else ""
            progress.say(f"  {short(found.attack, 36):<36} fools the model on {len(found)} of {found.tried}{few}")
    return Prepared(classifier, data, crafted)


def finish(job: Job, prepared: Prepared, stages: Stages) -> Bundle:
    """Fit, compile, calibrate, measure, and write the bundle."""
    classifier, data = prepared.classifier, prepared.data
    programs, began = prepared.programs(job), time.monotonic()
    with stages.stage("fit detectors") as progress:
        heads = fit(job, prepared, programs, progress.note)
        save_heads(heads, job.work / "heads")
    with stages.stage("compile to ONNX"):
        graphs = compile_heads(job, prepared, programs, heads)
    with stages.stage("calibrate"):
        calibrator = Calibrator(job, classifier, programs, graphs.compiled, data)
        calibration, leaks = calibrator.calibrate(prepared.crafted)
        provisional = calibrator.bundle(job.work / "provisional", calibration, leaks, {})
        parity = parities(graphs, provisional)
        write_seconds(job.work, time.monotonic() - began)
    with stages.stage("measure on held-out data") as progress:
        subject = Subject(classifier, programs, heads, Runtime(provisional))
        effort = Effort(job.attack_items, job.adaptive_items, job.adaptive_steps, job.seed, job.work / "crafted")
        evaluation = measure(subject, data.held_out(), job.recipe, effort, progress)
    with stages.stage("write bundle"):
        reports = {"report.json": to_json(evaluation).encode(), "report.html": to_html(evaluation).encode()}
        bundle = calibrator.bundle(job.out, calibration, leaks, reports, parity)
        shutil.rmtree(job.work / "provisional")
    return bundle


def write_work(job: Job, data: Data) -> None:
    """The split by content hash, and what the model and recipe were, for `guard evaluate`."""
    job.work.mkdir(parents=True, exist_ok=True)
    (job.work / "splits.json").write_text(json.dumps(data.splits, indent=0, sort_keys=True), encoding="utf-8")
    settings = {key: value for key, value in asdict(job).items() if key not in ("recipe", "out")}
    if Path(job.model).is_file():
        settings["model"] = str(Path(job.model).resolve())  # found again from wherever `guard evaluate` is called
    settings |= {"data": job.data.resolve(), "test": job.test and job.test.resolve()}
    settings |= {"recipe": {"name": job.recipe.name, "raw": job.recipe.raw}}
    (job.work / "job.json").write_text(json.dumps(settings, indent=2, default=str), encoding="utf-8")


def craft_all(job: Job, classifier: Classifier, data: Data, progress: Stage) -> tuple[CraftedSet, ...]:
    """Every attack that is learned from, on the items of the splits that are fitted on."""
    shares = {Split.HEADS: 0.7, Split.COMBINER: 0.3}
    index = np.concatenate([data.part(s)[: math.ceil(share * job.craft_items)] for s, share in shares.items()])
    return craft(
        classifier.graph,
        data.images[index],
        data.labels[index],
        data.hashes[index],
        job.recipe.attacks,
        grid=classifier.spec.input.grid,
        work=job.work / "crafted",
        fingerprint=classifier.spec.fingerprint,
        seed=job.seed,
        progress=progress.items,
    )
