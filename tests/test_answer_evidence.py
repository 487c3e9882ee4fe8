"""A closed model's answer as evidence: its score, what it adds to a risk, and the promise that holds with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom

from guard.answer_evidence import KINDS, AnswerKind, as_labels, divergence, evidence_of
from guard.bundle import ANSWER_CALIBRATIONS, Bundle, write_bundle
from guard.cascade import Readings, jitter
from guard.errors import BundleError
from guard.runtime import Runtime
from tests.serve import closed_bundle, tiny_bundle

HELD_OUT_ITEMS = 3000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return closed_bundle.make(tmp_path_factory.mktemp("answers") / "closed")


def known(images: NDArray[np.float32], kind: AnswerKind) -> NDArray[np.float32]:
    found = closed_bundle.shares(images)
    return as_labels(found) if kind == "label" else found


def test_the_example_at_the_files_head() -> None:
    logits = np.log(np.asarray([[0.9, 0.1]] * 3))
    answers = np.asarray([[0.8, 0.2], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(divergence(answers, logits), [0.044, 0.105, 2.303], atol=5e-4)


def test_the_score_is_a_divergence() -> None:
    """Nought where both say the same, never below it, finite for the surest student, and each item's own."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4)) * 3
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(divergence(shares, logits), 0, atol=1e-12)
    np.testing.assert_allclose(divergence(shares, logits + 700), 0, atol=1e-9)  # logits of another level say the same
    other = generator.dirichlet(np.ones(4), 50)
    found = divergence(other, logits)
    assert (found > 0).all()
    np.testing.assert_array_equal(found[7:9], divergence(other[7:9], logits[7:9]))
    surest = divergence(np.asarray([[0.0, 1.0]]), np.asarray([[2000.0, -2000.0]], np.float32))
    np.testing.assert_allclose(surest, 4000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_promise_holds_with_answers_as_without(bundle: Bundle, kind: AnswerKind) -> None:
    """Rejections of fresh clean items lie in the law's central 99.9 %, and half or twice the rate does not."""
    evidence, runtime = evidence_of(bundle)[kind], Runtime.open(bundle, threads=1)
    images = tiny_bundle.clean(HELD_OUT_ITEMS, seed=12)
    found = evidence.after(runtime.read(images), jitter(images), known(images, kind))
    n = evidence.calibration.items
    for rate in (0.01, 0.05):
        allowed = int(rate * (n + 1))
        law = betabinom(HELD_OUT_ITEMS, allowed, n + 1 - allowed)
        assert law.ppf(0.0005) <= (found.p_value <= rate).sum() <= law.ppf(0.9995)
    assert not law.ppf(0.0005) <= (found.p_value <= 2 * rate).sum() <= law.ppf(0.9995)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_makes_an_item_less_suspicious_than_it_is_before_one(bundle: Bundle, kind: AnswerKind) -> None:
    """Rule 1, to the last bit: whatever the shares are."""
    evidence, runtime = evidence_of(bundle)[kind], Runtime.open(bundle, threads=1)
    images = np.concatenate([tiny_bundle.clean(200, seed=4), tiny_bundle.striped(2), tiny_bundle.bright(2)])
    readings, ties = runtime.read(images), jitter(images)
    before = evidence.before(readings, ties)
    generator = np.random.default_rng(1)
    for _ in range(40):
        shares = generator.dirichlet(np.full(tiny_bundle.CLASSES, generator.choice([0.1, 1.0, 10.0])), len(images))
        after = evidence.after(readings, ties, as_labels(shares) if kind == "label" else shares)
        assert (after.risk >= before.risk).all()
        assert (after.p_value <= before.p_value).all()


def test_some_answer_leads_to_no_more_than_is_known_before_it(bundle: Bundle) -> None:
    """So nothing more could be rejected before the model has seen it, at the same promise."""
    evidence, runtime = evidence_of(bundle)["probabilities"], Runtime.open(bundle, threads=1)
    images = tiny_bundle.clean(30, seed=4)
    readings, ties = runtime.read(images), jitter(images)
    student = np.exp(readings.logits.astype(np.float64))
    student /= student.sum(axis=1, keepdims=True)
    answers = [(1 - share) * student + share / tiny_bundle.CLASSES for share in np.logspace(-5, -0.1, 1500)]
    least = np.min([evidence.after(readings, ties, shares).risk for shares in answers], axis=0)
    np.testing.assert_allclose(least, evidence.before(readings, ties).risk, atol=0.01)


def test_what_an_earlier_program_decided_keeps_its_risk(bundle: Bundle) -> None:
    runtime = Runtime.open(bundle, threads=1)
    images = np.concatenate([tiny_bundle.bright(3), tiny_bundle.ordinary(3)])
    readings, ties = runtime.read(images), jitter(images)
    assert readings.program.tolist() == [0, 0, 0, 1, 1, 1]
    wrong = known(images, "label")[:, ::-1]
    after = evidence_of(bundle)["label"].after(readings, ties, wrong)
    np.testing.assert_array_equal(after.risk[:3], readings.risk[:3])
    assert (after.risk[3:] != readings.risk[3:]).all()
    assert np.isnan(after.scores[:3, 1]).all()
    assert np.isfinite(after.scores[:, -1]).all()


def test_a_contested_item_is_found_by_the_answer_alone(bundle: Bundle) -> None:
    runtime, images = Runtime.open(bundle, threads=1), closed_bundle.contested(3)
    readings = runtime.read(images)
    assert (readings.p_value > 0.05).all()
    assert (readings.prediction != closed_bundle.shares(images).argmax(axis=1)).all()
    for kind, evidence in evidence_of(bundle).items():
        assert (evidence.before(readings, jitter(images)).p_value > 0.05).all()
        assert (evidence.after(readings, jitter(images), known(images, kind)).p_value <= 0.01).all()


def test_an_item_is_judged_by_itself(bundle: Bundle) -> None:
    runtime, evidence = Runtime.open(bundle, threads=1), evidence_of(bundle)["probabilities"]
    images = np.concatenate([tiny_bundle.clean(30, seed=5), tiny_bundle.bright(2)])

    def read(images: NDArray[np.float32]) -> Readings:
        return evidence.after(runtime.read(images), jitter(images), closed_bundle.shares(images))

    whole = read(images)
    for place in (0, 13, 31):
        np.testing.assert_allclose(whole.risk[place], read(images[place : place + 1]).risk[0], rtol=0, atol=1e-5)


def test_a_bundle_of_an_opened_model_has_none(tmp_path: Path) -> None:
    assert evidence_of(tiny_bundle.make(tmp_path / "opened")) == {}


def test_calibrations_of_other_programs_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle whose parts do not belong together is no bundle, whoever put them into one directory."""
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    own = evidence_of(bundle)["label"].calibration
    other = replace(own, detectors=("brightness", "another", "answer"))
    changed = files | {ANSWER_CALIBRATIONS["label"]: tiny_bundle.npz(**other.to_arrays())}
    mixed = write_bundle(tmp_path / "mixed", bundle.manifest, changed)
    with pytest.raises(BundleError, match="not of this bundle's programs"):
        evidence_of(mixed)


def test_answers_are_part_of_what_tells_one_guard_from_another(bundle: Bundle, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    own = evidence_of(bundle)["label"].calibration
    other = replace(own, clean_risks=own.clean_risks[::-1])
    changed = files | {ANSWER_CALIBRATIONS["label"]: tiny_bundle.npz(**other.to_arrays())}
    assert write_bundle(tmp_path / "same", bundle.manifest, files).identity == bundle.identity
    assert write_bundle(tmp_path / "other", bundle.manifest, changed).identity != bundle.identity
