"""A student from end to end: distilled, compared, refused where it does not know its model, trained on, reopened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.answer_evidence import evidence_of
from guard.bundle import Bundle
from guard.cascade import jitter
from guard.data_file import DataFile
from guard.errors import BundleError, ConfigError, ModelError
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.closed.answer_form import form_of
from guard.offline.closed.study import probed, reopen
from guard.offline.closed.surroundings import boundary, boxed, mixed, noisy
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import on_grid
from guard.offline.data.splits import Split
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import parse
from guard.offline.model.open_model import Source
from guard.offline.preflight.check import check
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from guard.summary import summarise
from tests.offline import tiny
from tests.offline.closed.forest import write_forest

RECIPE = {
    "detector": [{"name": "mahalanobis", "program": "screen"}, {"name": "kernel_density", "program": "screen"}],
    "attack": [{"name": "pgd", "budget": 0.25, "steps": 8}, {"name": "deepfool"}],
    "adaptive": {"budgets": [0.25]},
}
ASKED: list[int] = []


def forest(wire: NDArray[np.float32]) -> NDArray[Any]:
    """Answers with the sign of two features, and counts what it is asked."""
    ASKED.append(len(wire))
    return (wire[:, 0] > wire[:, 1]).astype(np.int64) + (wire[:, 2] > 0.5)


def parity_of(wire: NDArray[np.float32]) -> NDArray[Any]:
    """Answers by what nothing small can learn: whether the item's sixteenths sum to an even number."""
    return (np.rint(wire * tiny.GRID).sum(axis=1) % 2).astype(np.int64)


def float_labels(wire: NDArray[np.float32]) -> NDArray[Any]:
    """Answers with the number of the nearest of three values of a feature, as a float."""
    return np.rint(2 * wire[:, 0]).clip(0, 2).astype(np.float32)


def test_a_table_that_is_sorted_by_class_is_asked_about_all_of_it() -> None:
    rows = np.sort(np.random.default_rng(0).random((900, 1), np.float32), axis=0)
    examples = DataFile(rows, (2 * rows[:, 0]).round().astype(np.int64), "sorted.csv")
    probe = probed(Source("", (1,)), examples)
    assert len(probe) == 64
    form = form_of(float_labels(probe), len(probe), source="it")
    assert (form.kind, form.classes) == ("label", 3)
    few = probed(Source("", (1,)), DataFile(rows[-5:], np.zeros(5, np.int64), "few.csv"))
    np.testing.assert_array_equal(few, rows[-5:])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_in(tmp_path)


def job_in(tmp_path: Path) -> Job:
    images, labels = tiny.vectors(640, seed=7)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    return Job(
        model="",
        answers=str(write_forest(tmp_path / "forest.onnx")),
        data=tmp_path / "data.npz",
        out=tmp_path / "bundle",
        recipe=parse(RECIPE, "tiny"),
        reject_rate=0.05,
        flag_rate=0.1,
        craft_items=200,
        attack_items=60,
        adaptive_items=4,
        adaptive_steps=2,
        questions=3000,
        threads=1,
    )


def test_a_forest_is_guarded_through_its_student_and_reopened(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(job, input_type="FP64")
    bundle = train(job, Stages(Console(width=100)))
    assert bundle.manifest.model.input.datatype == "FP64"
    assert Runtime.open(bundle, threads=1).read(tiny.vectors(2)[0].astype(np.float64)).p_value.shape == (2,)
    found = bundle.manifest.provenance["student"]
    said = " ".join(capsys.readouterr().out.split())
    assert found["agreed"] >= 0.9
    assert found["gradient"] == "student"
    assert bundle.manifest.measured_disagreement == pytest.approx(1 - found["agreed"])
    assert f"same class on {found['agreed']:.1%} of {found['items']} held-out clean items" in said
    assert f"{found['transfer']:.0%} of those that mislead the student fool the model" in said
    assert "the gradient is a student's" in " ".join(summarise(bundle).split())
    report = json.loads((bundle.path / "report.json").read_text("utf-8"))
    assert report["closed"]["clean"]["value"] == pytest.approx(found["agreed"])
    assert "climbed a student's gradient" in report["against"][0]
    assert "Whose gradient was used" in (bundle.path / "report.html").read_text("utf-8")

    subject = Work.beside(bundle).subject(bundle)
    _, data = open_job(job, kept=job.work)
    test = data.part(Split.TEST)
    answering = subject.classifier.answering
    assert answering is not None
    model = answering.predict(test.images)
    assert report["accuracy"]["value"] == pytest.approx(float((model == test.labels).mean()))  # the model's own
    check_answers(bundle, subject, test, report)
    for row in report["attacks"]:
        assert row["transfer"]["items"] >= row["transfer"]["count"] > 0
        assert row["success"]["count"] >= row["transfer"]["count"]

    (kept_student,) = job.work.student.glob("student-*.npz")
    weights = kept_student.read_bytes()
    kept_student.write_bytes(weights[:100])
    with pytest.raises(BundleError, match="gone or damaged, the student"):
        Work.beside(bundle).subject(bundle)
    kept_student.write_bytes(weights)
    write_forest(Path(str(job.answers)), words=("a", "b", "c"))
    with pytest.raises(ModelError, match="no longer the model that the bundle was made for"):
        Work.beside(bundle).subject(bundle)


def check_answers(bundle: Bundle, subject: OpenedGuard, test: Dataset, report: dict[str, Any]) -> None:
    """The bundle ranks the forest's own answers, and the report's rows are what the sidecar would decide with them."""
    known, answering = evidence_of(bundle), subject.classifier.answering
    assert known is not None
    assert answering is not None
    assert report["guard"] == bundle.identity  # which the answers are part of, before and after they are written
    assert "can be held until the verdict" in " ".join(summarise(bundle).split())
    wire = bundle.manifest.model.input.box.from_unit(test.images[:])
    readings = Runtime.open(bundle, threads=1).read(wire)
    p_value = known.after(readings, jitter(wire), answering.predict(test.images[:])).p_value
    clean, *attacked = report["answered"]
    assert clean["name"] == "clean"
    assert clean["held"]["count"] == int((p_value <= bundle.manifest.reject_rate).sum())
    assert clean["band"][0] <= clean["held"]["count"] <= clean["band"][1]
    assert [row["name"] for row in attacked] == [row["label"] for row in report["attacks"]]
    for row, alone in zip(attacked, report["attacks"], strict=True):
        assert row["alone"] == alone["rejected"]
        assert row["before"]["count"] <= min(row["alone"]["count"], row["held"]["count"])
    (adaptive,) = report["adaptive"]
    assert adaptive["answered"]["held"]["items"] <= adaptive["fooled"]["items"]
    assert "With the model's answer held" in (bundle.path / "report.html").read_text("utf-8")


def test_an_attack_counts_once_the_model_itself_is_wrong(job: Job) -> None:
    classifier, data = open_job(replace(job, questions=1500))
    answering = classifier.answering
    assert answering is not None
    setup = CraftSetup(
        TorchModel(classifier.graph), tiny.GRID, "print", job.work.crafted, 0, workers=1, answering=answering
    )
    (found,) = craft(setup, replace(data.take(slice(150)), splits={}), [Pgd(budget=0.25, steps=8)])
    assert len(found) > 20
    np.testing.assert_array_equal(answering.predict(found.clean), found.labels)
    np.testing.assert_array_equal(answering.predict(found.attacked), found.predictions)
    assert (found.predictions != found.labels).all()
    with torch.no_grad():
        student = classifier(torch.from_numpy(found.attacked)).argmax(dim=1).numpy()
    assert found.transfer is not None
    assert found.transfer.transferred <= int((student != found.labels).sum())
    assert found.transfer.tried >= found.transfer.misled >= found.transfer.transferred > 0


def test_a_study_is_taken_up_again_and_asks_nothing_twice(job: Job) -> None:
    job = replace(job, answers=f"{__name__}:forest", accept_accuracy=True, questions=1500)
    job.work.begin()
    ASKED.clear()
    first, _ = open_job(job, kept=job.work)
    asked = sum(ASKED)
    assert 500 < asked <= 2000
    ASKED.clear()
    again, _ = open_job(job, kept=job.work)
    assert sum(ASKED) <= 64  # a probe for the form of answers; all else is kept
    assert again.spec.fingerprint == first.spec.fingerprint
    (student,) = job.work.student.glob("student-*.npz")
    student.unlink()
    assert open_job(job, kept=job.work)[0].spec.fingerprint == first.spec.fingerprint  # made anew from kept answers
    assert sum(ASKED) <= 128


RETRAINED: list[bool] = []


def retrained(wire: NDArray[np.float32]) -> NDArray[Any]:
    """Answers as `forest`, or, once it was trained anew, the other way round."""
    found = (wire[:, 0] > wire[:, 1]).astype(np.int64) + (wire[:, 2] > 0.5)
    return 2 - found if RETRAINED else found


def test_answers_of_a_model_that_was_trained_anew_are_not_taken_for_its_own(job: Job) -> None:
    RETRAINED.clear()
    job = replace(job, answers=f"{__name__}:retrained", accept_accuracy=True, questions=1500)
    job.work.begin()
    classifier, _ = open_job(job, kept=job.work)
    spec, answering = classifier.spec, classifier.answering
    assert answering is not None
    source = Source("", spec.input.shape, output=spec.output.kind)
    assert reopen(job.study(keep=True), source, spec, answering.study).spec.fingerprint == spec.fingerprint
    RETRAINED.append(True)
    words = rf"answers otherwise than when its answers were kept: .* of 64 items; train anew: remove {job.work.path}"
    with pytest.raises(ModelError, match=words):
        open_job(job, kept=job.work)
    with pytest.raises(ModelError, match=words):
        reopen(job.study(keep=True), source, spec, answering.study)
    RETRAINED.clear()
    assert open_job(job, kept=job.work)[0].spec.fingerprint == spec.fingerprint


def test_a_student_that_does_not_know_its_model_is_refused(job: Job) -> None:
    hopeless = replace(job, answers=f"{__name__}:parity_of", questions=1000)
    with pytest.raises(
        ModelError, match=r"names the same class as .*wanted 90% and 60%.*--questions 10000.*more clean"
    ):
        open_job(hopeless)
    assert not job.work.path.exists()


def test_one_model_is_named_in_one_way(job: Job, tmp_path: Path) -> None:
    for changed, words in (
        ({"model": "model.onnx"}, "--model and --answers exclude each other"),
        ({"served": tmp_path / "int8.onnx"}, "--served and --answers exclude each other"),
        ({"answers": None}, "give --model, or --answers"),
        ({"answers": None, "model": "m.onnx", "name": "forest"}, "goes with --answers HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=words):
            check(replace(job, **changed), lambda *_: None)
    with pytest.raises(ModelError, match=rf"--answers {job.answers} in the place of --model"):
        check(replace(job, answers=None, model=str(job.answers)), lambda *_: None)


def test_what_surrounds_clean_items_lies_in_the_box_and_at_the_boundary() -> None:
    clean, _ = tiny.vectors(80, seed=3)
    for make in (noisy, mixed, boxed):
        found = make(clean, 50, np.random.default_rng(0))
        assert found.shape == (50, tiny.FEATURES)
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= 1
        assert len(np.unique(found, axis=0)) > 45

    def ask(items: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.eye(2, dtype=np.float32)[(items[:, 0] > 0.5).astype(int)]

    items, shares = boundary(clean[:40], clean[40:], ask, None)
    np.testing.assert_array_equal(shares, ask(items))
    assert len(items) % 6 == 0
    last = items[-len(items) // 6 :]
    assert np.abs(last[:, 0] - 0.5).max() < np.abs(clean[:, 0] - 0.5).max() / 16
    snapped, _ = boundary(clean[:40], clean[40:], ask, tiny.GRID)
    assert on_grid(snapped, tiny.GRID)
