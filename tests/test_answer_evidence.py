"""A closed model's answer as evidence: its score, what it adds to a risk, and the promise that holds with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom

from guard.answer_evidence import AnswerCalibration, evidence_of, surprisal
from guard.bundle import ANSWER_CALIBRATION, Bundle, write_bundle
from guard.cascade import Readings, jitter
from guard.errors import BundleError
from guard.runtime import Runtime
from tests.serve import closed_bundle, tiny_bundle

HELD_OUT_ITEMS = 3000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return closed_bundle.make(tmp_path_factory.mktemp("answers") / "closed")


@pytest.fixture(scope="module")
def answers(bundle: Bundle) -> AnswerCalibration:
    found = evidence_of(bundle)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return Runtime.open(bundle, threads=1)


def test_the_example_at_the_files_head(answers: AnswerCalibration) -> None:
    logits = np.log(np.asarray([[0.9, 0.1]] * 2))
    np.testing.assert_allclose(surprisal(np.asarray([0, 1]), logits), [0.105, 2.303], atol=5e-4)
    line = replace(answers, floor=-1.0, pace=2.0)
    assert line.floor + line.pace * 2.303 == pytest.approx(3.6, abs=0.01)


def test_the_score_is_the_students_surprisal() -> None:
    """Never below nought, whatever level the logits have, finite for the surest student, and each item's own."""
    generator = np.random.default_rng(0)
    logits, classes = generator.normal(size=(50, 4)) * 3, generator.integers(0, 4, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = surprisal(classes, logits)
    np.testing.assert_allclose(found, -np.log(probabilities[np.arange(50), classes]), atol=1e-12)
    np.testing.assert_allclose(surprisal(classes, logits + 700), found, atol=1e-9)
    np.testing.assert_array_equal(found[7:9], surprisal(classes[7:9], logits[7:9]))
    np.testing.assert_allclose(surprisal(np.asarray([1]), np.asarray([[2000.0, -2000.0]], np.float32)), 4000)


def test_the_promise_holds_with_answers_as_without(answers: AnswerCalibration, runtime: Runtime) -> None:
    """Rejections of fresh clean items lie in the law's central 99.9 %, and those of twice the rate do not."""
    images = tiny_bundle.clean(HELD_OUT_ITEMS, seed=12)
    found = answers.after(runtime.read(images), jitter(images), closed_bundle.named(images))
    n = answers.base.items
    for rate in (0.01, 0.05):
        allowed = int(rate * (n + 1))
        law = betabinom(HELD_OUT_ITEMS, allowed, n + 1 - allowed)
        assert law.ppf(0.0005) <= (found.p_value <= rate).sum() <= law.ppf(0.9995)
    assert not law.ppf(0.0005) <= (found.p_value <= 2 * rate).sum() <= law.ppf(0.9995)


def test_no_answer_makes_an_item_less_suspicious_than_it_is_before_one(
    answers: AnswerCalibration, runtime: Runtime
) -> None:
    """Rule 1, to the last bit, whatever class is named; and of some classes nothing more is known than before."""
    images = np.concatenate([tiny_bundle.clean(200, seed=4), tiny_bundle.striped(2), tiny_bundle.bright(2)])
    readings, ties = runtime.read(images), jitter(images)
    before = answers.before(readings)
    every = [answers.after(readings, ties, np.full(len(images), one)) for one in range(tiny_bundle.CLASSES)]
    for after in every:
        assert (after.risk >= before.risk).all()
        assert (after.p_value <= before.p_value).all()
    rejected = before.p_value <= 0.01
    assert rejected[-4:].all()
    assert all((after.p_value[rejected] == before.p_value[rejected]).any() for after in every)
    assert np.isnan(before.scores[:, -1]).all()


def test_what_an_earlier_program_decided_keeps_its_risk(answers: AnswerCalibration, runtime: Runtime) -> None:
    images = np.concatenate([tiny_bundle.bright(3), tiny_bundle.ordinary(3)])
    readings = runtime.read(images)
    assert readings.program.tolist() == [0, 0, 0, 1, 1, 1]
    after = answers.after(readings, jitter(images), (closed_bundle.named(images) + 1) % tiny_bundle.CLASSES)
    np.testing.assert_array_equal(after.risk[:3], readings.risk[:3])
    assert (after.risk[3:] > readings.risk[3:]).all()
    assert np.isnan(after.scores[:3, 1]).all()
    assert np.isfinite(after.scores[:, -1]).all()


def test_a_contested_item_is_found_by_the_answer_alone(answers: AnswerCalibration, runtime: Runtime) -> None:
    images = closed_bundle.contested(3)
    readings = runtime.read(images)
    assert (readings.prediction != closed_bundle.named(images)).all()
    assert (readings.p_value > 0.05).all()
    assert (answers.before(readings).p_value > 0.05).all()
    found = answers.after(readings, jitter(images), closed_bundle.named(images))
    assert (found.p_value <= 0.01).all()
    assert (found.detector_p[:, -1] <= 0.01).all()


def test_an_item_is_judged_by_itself(answers: AnswerCalibration, runtime: Runtime) -> None:
    images = np.concatenate([tiny_bundle.clean(30, seed=5), tiny_bundle.bright(2)])

    def read(images: NDArray[np.float32]) -> Readings:
        return answers.after(runtime.read(images), jitter(images), closed_bundle.named(images))

    whole = read(images)
    for place in (0, 13, 31):
        np.testing.assert_allclose(whole.risk[place], read(images[place : place + 1]).risk[0], rtol=0, atol=1e-5)


def test_a_bundle_of_an_opened_model_has_none(tmp_path: Path) -> None:
    assert evidence_of(tiny_bundle.make(tmp_path / "opened")) is None


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer items": ({"clean_risks": np.zeros(5), "clean_scores": np.zeros(5)}, "ranks 5 items, calibration.npz 999"),
    "no ranks": ({"clean_scores": np.full(tiny_bundle.ITEMS, np.nan)}, "not finite"),
    "a line downwards": ({"line": np.asarray([0.0, -1.0])}, "an answer lower a risk"),
    "other programs' risks": ({"clean_risks": np.full(tiny_bundle.ITEMS, -9.0)}, "not of this bundle's programs"),
    "another form": ({"line": np.zeros(3)}, "not one that this version wrote"),
}


@pytest.mark.parametrize(("changes", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_calibration_that_does_not_fit_the_programs_is_refused(
    bundle: Bundle, answers: AnswerCalibration, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """A bundle whose parts do not belong together is no bundle, whoever put them into one directory."""
    mixed = rewritten(bundle, tmp_path / "mixed", answers.to_arrays() | changes)
    with pytest.raises(BundleError, match=said):
        evidence_of(mixed)


def rewritten(bundle: Bundle, path: Path, arrays: Mapping[str, NDArray[Any]]) -> Bundle:
    """The bundle with another calibration of answers."""
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    return write_bundle(path, bundle.manifest, files | {ANSWER_CALIBRATION: tiny_bundle.npz(**arrays)})


def test_answers_are_part_of_what_tells_one_guard_from_another(
    bundle: Bundle, answers: AnswerCalibration, tmp_path: Path
) -> None:
    assert rewritten(bundle, tmp_path / "same", answers.to_arrays()).identity == bundle.identity
    other = rewritten(bundle, tmp_path / "other", replace(answers, pace=2 * answers.pace).to_arrays())
    assert other.identity != bundle.identity
