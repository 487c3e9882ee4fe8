"""Provenance of a bundle: the same data have the same digest, and what is changed has another."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split, content_hashes
from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe
from guard.offline.training.sources import content_digest, source_facts


def dataset(labels: list[int], *, order: list[int] | None = None) -> Dataset:
    images = np.arange(len(labels) * 4, dtype=np.float32).reshape(len(labels), 1, 2, 2) / 100
    places = np.asarray(order or range(len(labels)))
    found = Dataset(images, np.asarray(labels), content_hashes(images))
    return found.take(places)


def test_order_and_files_do_not_matter_and_labels_do() -> None:
    one = content_digest(dataset([0, 1, 2]))
    assert content_digest(dataset([0, 1, 2], order=[2, 0, 1])) == one
    assert content_digest(dataset([0, 1, 1])) != one
    assert content_digest(dataset([0, 1])) != one
    assert content_digest(dataset([0, 1, 2], order=[0, 1, 2, 2])) != one
    assert one.startswith("sha256:")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("model.onnx", "data.npz", "test.npz"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    recipe = load_recipe("fast", None)
    return Job(model=str(tmp_path / "model.onnx"), data=tmp_path / "data.npz", out=tmp_path / "out", recipe=recipe)


def test_files_are_named_by_what_sha256sum_prints_and_never_by_path(job: Job) -> None:
    facts = source_facts(job, dataset([0, 1]))
    digests = {name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("model.onnx", "data.npz")}
    assert facts["model"] == {"digest": digests["model.onnx"]}
    assert facts["data"] == {"items": 2, "digest": content_digest(dataset([0, 1])), "file": digests["data.npz"]}
    assert set(facts) == {"model", "data"}
    assert str(job.out.parent) not in repr(facts)


def test_a_test_file_is_a_source_of_its_own(job: Job) -> None:
    both = dataset([0, 1, 2])
    splits = dict(zip(both.hashes.tolist(), (Split.HEADS, Split.TEST, Split.CALIBRATE), strict=True))
    facts = source_facts(replace(job, test=job.data.with_name("test.npz")), replace(both, splits=splits))
    assert facts["data"]["items"] == 2
    assert facts["test"]["items"] == 1
    assert facts["test"]["digest"] == content_digest(both.take(slice(1, 2)))


def test_what_is_no_file_is_left_out(job: Job) -> None:
    facts = source_facts(replace(job, answers="server.example:9000", data=job.data.parent), dataset([0]))
    assert "model" not in facts
    assert "file" not in facts["data"]
    assert "server.example" not in repr(facts)
