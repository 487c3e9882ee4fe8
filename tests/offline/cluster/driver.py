"""The small training and evaluation that the tests of Ray run, each in a process of its own.

python -m tests.offline.cluster.driver train|evaluate FOLDER [ADDRESS]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from guard.bundle import Bundle
from guard.errors import GuardError
from guard.offline import evaluate as evaluating
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.job.job import Job
from guard.offline.job.recipe import parse
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.offline.work.ray_cluster import computing_on
from tests.offline import tiny

SECOND = {"kind": "robust_verifier", "natural_epochs": 1, "robust_epochs": 1, "budget": 0.02, "forwards": 0.5}
DETECTORS = [{"name": name, "program": "screen"} for name in ("mahalanobis", "second_opinion")]
RECIPE = {**tiny.RECIPE, "cascade": False, "detector": DETECTORS, "second": SECOND, "repair": []}
RECIPE["attack"] = [
    *tiny.RECIPE["attack"],
    {"name": "gd_uap", "budget": 0.25},
    {"name": "cw", "steps": 200, "searches": 4},  # whose shards take a while
]


def job_in(folder: Path, address: str | None = None) -> Job:
    """Two attacks and one that learns first, in several shards, a second network, and the adaptive attack."""
    data = folder / "training.npz"
    if not data.exists():
        tiny.write_data(data, 1500, seed=21)
    sizes = {"craft_items": 200, "attack_items": 60, "adaptive_items": 8, "adaptive_steps": 3, "threads": 1}
    return tiny.job(folder, recipe=parse(RECIPE, "tiny"), second_data=data, **sizes)


def main(what: str, folder: str, address: str | None = None) -> None:
    stages, path = Stages(Console(width=120)), Path(folder)
    with computing_on(address) as executor:
        job = replace(job_in(path), executor=executor)
        print("connected", flush=True)
        if what == "train":
            train(job, stages)
        else:
            evaluating.FULL_ITEMS_AND_STEPS = (60, 8, 4)
            fresh = path / "fresh.npz"
            if not fresh.exists():
                tiny.write_data(fresh, 120, seed=31)
            wish = Wish(minutes=1000.0, executor=executor)
            evaluate_bundle(Bundle.open(job.out), fresh, path / "report", wish, stages)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GuardError as error:
        sys.exit(f"{type(error).__name__}: {error}")
