"""A training on items that stay in their files, which ends as one from memory does, and on a stated sample of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guard import array_room
from guard.bundle import Bundle
from guard.errors import PromiseError
from guard.offline.data.splits import Split
from guard.offline.job.feature_file import Stated
from guard.offline.job.job import Job, check_data, open_job
from guard.offline.preflight.sample import sample_of, sized
from guard.offline.train import train
from guard.offline.work.progress import Stages
from tests.offline import tiny

LITTLE_BYTES = 300_000  # of which a fifth is less than the tiny items take


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_room, "memory_bytes", lambda: LITTLE_BYTES)
    monkeypatch.setattr(array_room, "PART_BYTES", 10_000)


@pytest.mark.usefixtures("little_memory")
def test_the_guard_is_that_of_memory_bit_for_bit(
    tiny_job: Job, tiny_bundle: Bundle, tmp_path: Path, stages: Stages
) -> None:
    for name in ("model.pt2", "data.npz"):
        shutil.copy(tiny_job.out.parent / name, tmp_path)
    found = train(tiny.job(tmp_path), stages)
    assert list((tmp_path / "bundle.work" / "reading").iterdir())
    for name in ("screen.onnx", "interpret.onnx", "weights.bin", "calibration.npz", "samples.npz"):
        assert (found.path / name).read_bytes() == (tiny_bundle.path / name).read_bytes(), name


@pytest.mark.usefixtures("little_memory")
def test_grey_images_stay_in_their_file_but_no_table_and_no_closed_models_items(problem: Path) -> None:
    with np.load(problem / "data.npz") as held:
        images, labels = held["images"], held["labels"]
    np.savez(problem / "data.npz", images=images[:, 0], labels=labels)  # grey, without an axis of channels
    job = tiny.job(problem)
    _, data = open_job(job, kept=job.work)
    assert data.is_on_disk
    assert np.array_equal(data.images[:], images)
    assert job.streams
    assert not replace(job, answers="module:function").streams
    assert not replace(job, features=(Stated("age"),)).streams


@pytest.mark.usefixtures("little_memory")
def test_a_sample_is_what_was_asked_for_and_the_same_each_time(problem: Path) -> None:
    job = tiny.job(problem, clean_items=320)
    classifier, data = open_job(job, kept=job.work)
    found = sample_of(job, classifier, data, job.work)
    assert found.line is not None
    assert "of 640 items are used, as --clean-items says" in found.line
    assert 320 <= len(found.data) <= 323
    assert all(set(found.data.part(split).hashes.tolist()) <= set(data.part(split).hashes.tolist()) for split in Split)
    assert found.data.splits == data.splits
    again = sample_of(job, classifier, data, job.work).data
    assert np.array_equal(again.hashes, found.data.hashes)
    with pytest.raises(PromiseError):
        check_data(replace(job, reject_rate=0.01), sample_of(job, classifier, data, None).data)


def test_a_sample_follows_from_recipe_and_rates_whatever_the_minutes(problem: Path) -> None:
    job, many = tiny.job(problem, minutes=25.0, reject_rate=0.01), dict.fromkeys(Split, 50_000)
    found = sized(job, many, 64)
    assert found == sized(replace(job, minutes=1.0), many, 64)
    assert (found["calibrate"], found["test"]) == (5_000, 3_000)
    assert found["heads"] + found["combiner"] == 2 * job.recipe.items
    fewer = sized(replace(job, recipe=replace(job.recipe, items=400)), many, 64)
    assert fewer["heads"] + fewer["combiner"] == 800
    assert sized(replace(job, reject_rate=0.001), many, 64)["calibrate"] == 9_999
    assert sized(job, dict.fromkeys(Split, 30), 64) == {split.value: 30 for split in Split}


def test_memory_bounds_what_is_fitted_on(problem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, many = tiny.job(problem, minutes=25.0), dict.fromkeys(Split, 50_000)
    monkeypatch.setattr(array_room, "memory_bytes", lambda: 8 * 2**30)
    found = sized(job, many, 3 * 224 * 224)
    assert 600 <= found["heads"] + found["combiner"] < 1_000
