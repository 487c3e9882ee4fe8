"""A cascade in memory reads as the bundle that is written from it, and a training writes one bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import guard.offline.training.calibrator as calibrator
from guard.bundle import Bundle
from guard.offline.job.job import Job
from guard.offline.programs.read import read
from guard.offline.train import finish, prepare
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.offline import tiny


def test_one_training_writes_one_bundle(
    tiny_job: Job, tiny_bundle: Bundle, tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_job.work.path, tmp_path / "bundle.work")
    job = tiny.job(tmp_path)
    written, opened, write = [], [], calibrator.write_bundle
    monkeypatch.setattr(calibrator, "write_bundle", lambda *given: written.append(given[0]) or write(*given))
    monkeypatch.setattr(
        calibrator.Calibrator,
        "opened",
        lambda *given, opened_by=calibrator.Calibrator.opened: opened.append(opened_by(*given)) or opened[-1],
    )
    bundle = finish(job, prepare(job, stages), stages)
    assert written == [job.out]
    images = tiny.data(90, seed=3)[0]
    memory, served = opened[0].cascade, Runtime.open(bundle).cascade
    for name, value in vars(read(memory, images)).items():
        assert np.array_equal(value, vars(read(served, images))[name]), f"{name}, to the last bit"
    assert opened[0].identity == bundle.identity
    assert all(opened[0].graphs[p.name] == (bundle.path / p.file).read_bytes() for p in bundle.manifest.programs)
    assert bundle.calibration.clean_risks.tolist() == tiny_bundle.calibration.clean_risks.tolist()
