"""For maintainers: what `guard check` forecasts of crafting and fitting, beside what they take.

    python -m tests.bench.forecast [--model M.onnx --data FIT.npz] [--preset P] [--items 300]
    python -m tests.bench.forecast --quick       the tests' tiny images, 60 items of one attack

One line for each attack of the recipe and one for fitting: seconds forecast, seconds taken, and their quotient. Taken
are seconds of this process, on one thread; the forecast is by the clock, so on a busy machine it is larger. What the
two are made of, passes and items, is counted in tests.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.crafting.stage import craft_run, learning_items
from guard.offline.data.dataset import Dataset
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.model.classifier import Classifier
from guard.offline.preflight.cost import Speeds, seconds
from guard.offline.preflight.fitting import fitting_seconds
from guard.offline.train import choose_and_fit
from guard.offline.training.build import Prepared, compile_heads
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.fit_heads import settled
from guard.offline.work.progress import Stages
from tests.offline import tiny

ITEMS, QUICK_ITEMS = 300, 60


def main() -> int:
    torch.set_num_threads(1)
    given = parsed()
    with tempfile.TemporaryDirectory() as folder:
        job = quick_job(Path(folder)) if given.quick else job_of(given, Path(folder))
        classifier, data = open_job(job)
        print(f"{'':40}  forecast   taken   taken / forecast")
        for name, forecast_s, taken_s in lines(job, classifier, data):
            print(f"{name[:40]:40}  {forecast_s:6.2f} s  {taken_s:6.2f} s  {taken_s / forecast_s:.2f}", flush=True)
    return 0


def lines(job: Job, classifier: Classifier, data: Dataset) -> Iterator[tuple[str, float, float]]:
    """Yield what is forecast, the seconds forecast, and the seconds taken."""
    items = learning_items(data).take(slice(job.craft_items))
    speeds = Speeds.of(classifier, data)
    run = replace(craft_run(job, classifier, TorchModel(classifier.graph)), workers=1)
    crafted: list[CraftedSet] = []
    for attack in job.recipe.attacks:
        forecast_s = len(items) * seconds(attack, data.item_shape, classifier.spec.output.classes, speeds)
        yield repr(attack), forecast_s, craft_timed(run, items, attack, crafted)
    forecast_s = fitting_seconds(job, classifier, data)
    yield "fitting", forecast_s, fit_timed(job, Prepared(classifier, data, tuple(crafted)))


def craft_timed(run: CraftSetup, items: Dataset, attack: Attack, crafted: list[CraftedSet]) -> float:
    """Craft one attack, keep its items in `crafted`, and return the seconds of this process."""
    began = time.process_time()
    crafted += craft(run, items, [attack])
    return time.process_time() - began


def fit_timed(job: Job, prepared: Prepared) -> float:
    """Fit, compile and calibrate a guard as a training does; return the seconds of this process."""
    began = time.process_time()
    job, heads, choice, left_out = choose_and_fit(job, prepared, Stages(Console(file=io.StringIO())))
    programs = settled(prepared.programs(job), heads)
    files = compile_heads(job, prepared, programs, heads).files
    Calibrator(job, prepared.classifier, programs, files, prepared.data, choice).calibrate(prepared.crafted, left_out)
    return time.process_time() - began


def job_of(given: argparse.Namespace, folder: Path) -> Job:
    if given.model is None:
        return tiny.job(folder, craft_items=given.items, threads=1)
    recipe = load_recipe(given.preset)
    return Job(given.model, given.data, folder / "guard", recipe=recipe, craft_items=given.items, threads=1)


def quick_job(folder: Path) -> Job:
    detectors = {"cascade": False, "detector": tiny.RECIPE["detector"][:1], "repair": [], "left_out": []}
    recipe = parse({**tiny.RECIPE, **detectors, "attack": tiny.RECIPE["attack"][:1]}, "quick")
    return tiny.job(folder, recipe=recipe, craft_items=QUICK_ITEMS, threads=1)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--items", type=int, default=ITEMS)
    given = parser.parse_args(arguments)
    if (given.model is None) is not (given.data is None):
        parser.error("give --model and --data, or neither")
    return given


if __name__ == "__main__":
    sys.exit(main())
