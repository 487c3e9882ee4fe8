"""A linear model, whose one layer is the item itself, is checked, learned and guarded as any other."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.preflight.check import check
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.offline import tiny

RECIPE = {**tiny.PLAIN, "detector": [one for one in tiny.BRIEF["detector"] if one["name"] != "feature_squeezing"]}


@cache
def model() -> nn.Module:
    """Logistic regression as the vectors of the tiny problem need it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.fitted(nn.Linear(tiny.FEATURES, tiny.CLASSES), *tiny.vectors(600, seed=100), epochs=12)


def job(folder: Path, **changes: Any) -> Job:
    items, labels = tiny.vectors(640, seed=7)
    items += np.random.default_rng(0).normal(0, 0.01, items.shape).astype(np.float32)  # off any grid
    items = items.clip(0, 1)
    np.savez(folder / "data.npz", images=items, labels=labels)
    return tiny.job(folder, model=f"{__name__}:model", **changes)


@pytest.mark.parametrize("preset", ["fast", "vectors"])
def test_a_preset_fits_it(preset: str, tmp_path: Path) -> None:
    """Every detector of it compiles, and agrees with torch."""
    said: dict[str, str] = {}
    check(job(tmp_path, recipe=load_recipe(preset)), said.__setitem__)
    assert said["layers"] == "detectors may read input_1"
    assert "gives torch's logits, layers and gradient" in said["ONNX"]


def test_it_is_learned_and_guarded(tmp_path: Path) -> None:
    bundle = train(job(tmp_path, recipe=parse(RECIPE, "linear")), Stages(Console(file=io.StringIO())))
    assert Work.beside(bundle).subject(bundle).classifier.taps[0].name == "input_1"
    items = tiny.vectors(200, seed=11)[0]
    risks = [Runtime.open(bundle, threads=1).read(some).risk for some in (items, items.round())]
    assert np.median(risks[1]) > np.median(risks[0]), "what is far from all that it learned is suspicious"
