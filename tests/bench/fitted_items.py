"""For maintainers: what a guard catches that was fitted on few items of each attack, and on more.

    python -m tests.bench.fitted_items --model M.onnx --data FIT.npz --test TEST.npz [--preset P] [--second N.onnx]
        [--items 150,300,600,1000] [--tried 300] [--work DIR]
    python -m tests.bench.fitted_items --quick       the tests' tiny images, 30 and 60 items of two attacks

One guard for each number of verified items, all on the same clean items, each fitted, compiled and calibrated as
`guard train` does; the attacked items of the smaller ones are the first of the largest one's. Caught at 1 % and 5 %
promised, of fresh attacks on items of TEST: those of the recipe, and those that it leaves out. What is slow lies in DIR
and is taken up again.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from guard.cascade import Cascade
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter
from guard.offline.crafting.stage import craft_all, craft_run
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.findings.attack_names import labels_of
from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.programs.read import read
from guard.offline.train import prepare
from guard.offline.training.build import Prepared, compile_heads, fit
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.fit_heads import settled
from guard.offline.work.progress import Stages
from guard.offline.work.tables import new_table, plain_lines, shares

RATES = (0.01, 0.05)
QUICK_ITEMS, FULL_ITEMS, QUICK_TRIED_ITEMS = (30, 60), (150, 300, 600, 1000), 40


def main() -> int:
    given = parsed()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        job = quick_job(Path(folder)) if given.quick else job_of(given)
        counts = QUICK_ITEMS if given.quick else given.items
        stages = Stages(Console(width=100))
        largest, prepared = prepare(with_items(job, max(counts)), stages)
        with stages.stage("craft what is to be caught") as progress:
            test = prepared.data.part(Split.TEST)
            attacks = labels_of(
                (*largest.recipe.attacks, *largest.recipe.left_out), prepared.classifier.spec.input.grid
            )
            run = craft_run(largest, prepared.classifier, TorchModel(prepared.classifier.graph))
            target = Crafter.open(run, test.take(slice(QUICK_TRIED_ITEMS if given.quick else given.tried)))
            found = target.attacked(list(attacks.values()), progress=progress.items)
        caught: dict[int, dict[str, tuple[float, ...]]] = {}
        fitted: dict[int, list[int]] = {}
        for items in counts:
            with stages.stage(f"a guard on {items} items") as progress:
                own = with_items(largest, items)
                crafted = craft_all(own, prepared.classifier, prepared.data, progress)
                fitted[items] = [len(one) for one in crafted]
                cascade = guard_of(own, Prepared(prepared.classifier, prepared.data, crafted))
                caught[items] = rates_of(cascade, test, dict(zip(attacks, found, strict=True)))
    table = new_table("caught at 1 / 5 %", [shares(f"{items:,} items") for items in caught])
    for name in next(iter(caught.values())):
        table.add_row(name, *(" / ".join(f"{100 * rate:.0f}" for rate in of[name]) for of in caught.values()))
    print(*plain_lines([table], width_columns=100), sep="\n")
    print("fitted on", "; ".join(f"{items:,}: {min(each)} to {max(each)} an attack" for items, each in fitted.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.monotonic() - began:.0f} s, peak memory {peak:.2f} GiB")
    return 0 if all(np.isfinite(rates).all() for of in caught.values() for rates in of.values()) else 1


def with_items(job: Job, items: int) -> Job:
    """Return the job with a recipe that wants this many verified items of each attack."""
    return replace(job, recipe=replace(job.recipe, items=items))


def guard_of(job: Job, prepared: Prepared) -> Cascade:
    """Fit, compile and calibrate a guard, as `guard train` does."""
    programs = prepared.programs(job)
    heads = fit(job, prepared, programs, lambda _: None)
    programs = settled(programs, heads)
    graphs = compile_heads(job, prepared, programs, heads)
    calibrator = Calibrator(job, prepared.classifier, programs, graphs.files, prepared.data)
    return calibrator.calibrate(prepared.crafted, ()).cascade


def rates_of(cascade: Cascade, test: Dataset, found: dict[str, CraftedSet]) -> dict[str, tuple[float, ...]]:
    """Return the shares rejected at each rate: of clean items, of each attack's, the mean and the worst of those."""
    rows = {"clean": at_rates(cascade, test.images[:])}
    attacked = {f"{name} ({len(one)})": at_rates(cascade, one.attacked) for name, one in found.items() if len(one)}
    summed = np.asarray(list(attacked.values()))
    return rows | attacked | {"mean": tuple(summed.mean(axis=0)), "worst": tuple(summed.min(axis=0))}


def at_rates(cascade: Cascade, images: np.ndarray) -> tuple[float, ...]:
    p_value = read(cascade, images).p_value
    return tuple(float((p_value <= rate).mean()) for rate in RATES)


def job_of(given: argparse.Namespace) -> Job:
    out = (given.work or Path(tempfile.mkdtemp())) / "guard"
    return Job(
        model=given.model,
        data=given.data,
        test=given.test,
        out=out,
        recipe=load_recipe(given.preset),
        second=tuple(given.second),
    )


def quick_job(folder: Path) -> Job:
    """Return a job on the tests' tiny images, with a detector that learns from clean items and one of attacks."""
    from tests.offline import tiny

    kept = ("mahalanobis", "saliency_classifier")
    detectors = [one for one in tiny.RECIPE["detector"] if one["name"] in kept]
    return tiny.job(folder, recipe=parse({**tiny.RECIPE, "detector": detectors, "left_out": []}, "quick"), threads=1)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--second", action="append", default=[])
    parser.add_argument("--items", type=lambda text: [int(one) for one in text.split(",")], default=FULL_ITEMS)
    parser.add_argument("--tried", type=int, default=300)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args(arguments)
    if not given.quick and not (given.model and given.data):
        parser.error("give --model and --data, or --quick")
    return given


if __name__ == "__main__":
    sys.exit(main())
