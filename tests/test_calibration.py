"""From scores to a promise: the promise is kept, on both sides, and the test that says so can fail."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score

from guard.calibration import Band, Calibration, auroc, check_promise, rank_p, smallest_rate
from guard.cascade import JITTER_RISK, cascade_risk, jitter
from guard.errors import BundleError, PromiseError
from guard.fusion import HINGE_DEVIATIONS, Floats, unfitted
from guard.offline.findings.intervals import rejections_band, wilson

DRAWS = 1000
ITEMS, HELD_OUT, RATE = 999, 1000, 0.05
LEVEL = 0.999

Served = Callable[[Floats, Floats], NDArray[np.bool_]]  # (clean risks, risks) -> rejected


def promised(clean: Floats, risks: Floats) -> NDArray[np.bool_]:
    return np.asarray(rank_p(np.sort(clean), risks) <= RATE)


def always_pass(clean: Floats, risks: Floats) -> NDArray[np.bool_]:
    return np.zeros(risks.size, dtype=bool)


def too_eager(clean: Floats, risks: Floats) -> NDArray[np.bool_]:
    return np.asarray(rank_p(np.sort(clean), risks) <= 1.3 * RATE)


def rank_off_by_one(clean: Floats, risks: Floats) -> NDArray[np.bool_]:
    """The commonest mistake, without the item itself: at few items it breaks the promise."""
    return np.asarray((clean[:, None] >= risks).mean(axis=0) <= RATE)


def draws(served: Served, *, items: int = ITEMS, held_out: int = HELD_OUT, seed: int = 5) -> NDArray[np.int64]:
    """Rejections of held-out clean items, one number a draw of calibration and held-out data."""
    generator = np.random.default_rng(seed)
    found = [served(generator.standard_normal(items), generator.standard_normal(held_out)).sum() for _ in range(DRAWS)]
    return np.asarray(found, dtype=np.int64)


def outside(counts: NDArray[np.int64], *, rate: float = RATE, items: int = ITEMS, held_out: int = HELD_OUT) -> int:
    """Draws outside the central 99.9 % band; about one of a thousand is expected, and seven are too many."""
    low, high = rejections_band(rate, items, held_out, level=LEVEL)
    return int(((counts < low) | (counts > high)).sum())


TOO_MANY = 7  # P(Binomial(1000, 0.001) >= 7) < 1e-4


def test_the_promise_is_kept_over_a_thousand_draws() -> None:
    counts = draws(promised)
    assert outside(counts) < TOO_MANY
    # Not only the tails: the mean lies where floor(rate (n+1)) / (n+1) puts it, within five standard errors.
    k = int(RATE * (ITEMS + 1))
    expected = betabinom(HELD_OUT, k, ITEMS + 1 - k)
    assert abs(counts.mean() - expected.mean()) < 5 * expected.std() / np.sqrt(DRAWS)


@pytest.mark.parametrize("served", [always_pass, too_eager], ids=lambda served: str(served.__name__))
def test_the_test_has_power(served: Served) -> None:
    counts = draws(served)
    k = int(RATE * (ITEMS + 1))
    expected = betabinom(HELD_OUT, k, ITEMS + 1 - k)
    assert outside(counts) >= TOO_MANY
    assert abs(counts.mean() - expected.mean()) > 5 * expected.std() / np.sqrt(DRAWS)


def test_forgetting_the_item_itself_is_found_out_where_items_are_few() -> None:
    items = 40
    k = int(RATE * (items + 1))
    expected = betabinom(HELD_OUT, k, items + 1 - k)
    errors = [
        (draws(served, items=items).mean() - expected.mean()) / (expected.std() / np.sqrt(DRAWS))
        for served in (promised, rank_off_by_one)
    ]
    assert abs(errors[0]) < 5 < abs(errors[1])


def test_both_sides_of_the_band_can_fail() -> None:
    low, high = rejections_band(RATE, ITEMS, HELD_OUT)
    assert 0 < low < RATE * HELD_OUT < high < HELD_OUT


@pytest.mark.parametrize(
    ("rate", "items", "held_out"), [(0.05, 499, 400), (0.01, 99, 50), (0.3, 20, 200), (0.1, 999, 1)]
)
def test_the_band_holds_what_the_law_of_ranks_gives(rate: float, items: int, held_out: int) -> None:
    """Summed up by hand: each end of the band is the first count at which its tail is reached."""
    k = int(rate * (items + 1) + 1e-12)
    total = math.comb(items + held_out, items)
    # Of all orders of calibration and held-out items: j of the latter stand above the k-th largest of the former.
    shares = [
        math.comb(k - 1 + j, j) * math.comb(items - k + held_out - j, held_out - j) / total for j in range(held_out + 1)
    ]
    reached = np.cumsum(shares)
    assert reached[-1] == pytest.approx(1.0)
    low, high = rejections_band(rate, items, held_out)
    assert (low, high) == (int(np.argmax(reached >= 0.0005)), int(np.argmax(reached >= 0.9995)))


def test_no_rejection_where_nothing_can_be_promised() -> None:
    assert rejections_band(0.01, 50, 1000) == (0, 0)


def test_p_is_the_share_of_clean_items_at_least_as_risky() -> None:
    clean = np.asarray([1.0, 2.0, 2.0, 3.0])
    p = rank_p(clean, np.asarray([0.0, 1.0, 2.0, 2.5, 3.0, 9.0]))
    assert p.tolist() == [1.0, 1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


def test_p_falls_or_stays_as_risk_rises() -> None:
    calibration = example()
    risk = np.sort(np.random.default_rng(0).normal(0, 3, 500))
    p = calibration.p_value(risk)
    assert (np.diff(p) <= 0).all()
    assert p[0] > p[-1] >= smallest_rate(calibration.items)


def example(items: int = 300, seed: int = 0) -> Calibration:
    """Two programs, with one and two detectors."""
    generator = np.random.default_rng(seed)
    fit, scores = generator.normal(size=(200, 3)), generator.normal(size=(items, 3))
    fusions = (unfitted(fit[:, :1]), unfitted(fit))
    risks = cascade_risk(1, fusions[1].risk(scores))
    return Calibration(("a", "b", "c"), (1, 2), fusions, (Band(high=5.0),), risks, scores)


# Refusing what cannot be promised.


@pytest.mark.parametrize(("rate", "items", "wanted"), [(0.01, 98, 99), (0.05, 18, 19), (0.001, 300, 999)])
def test_a_rate_too_small_says_how_many_items_it_takes(rate: float, items: int, wanted: int) -> None:
    with pytest.raises(PromiseError, match=rf"with {items} clean .*takes {wanted} "):
        check_promise(rate, items, name="reject_rate")
    check_promise(rate, wanted, name="reject_rate")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(PromiseError, match="no rate"):
        check_promise(rate, 10**6, name="reject_rate")


def test_a_thin_promise_warns_and_a_good_one_does_not() -> None:
    warning = check_promise(0.01, 500, name="reject_rate")
    assert warning is not None
    assert "5 of 500" in warning
    assert check_promise(0.01, 999, name="reject_rate") is None


# A request as a whole.


def test_request_p_value_ranks_the_worst_row_among_blocks() -> None:
    calibration = replace(example(6), clean_risks=np.asarray([1.0, 9.0, 2.0, 3.0, 4.0, 5.0]))
    assert calibration.request_p_value(4.0, 2) == (1 + 2) / 4  # blocks' worst: 9, 3, 5
    assert calibration.request_p_value(9.5, 2) == 1 / 4
    assert calibration.request_p_value(3.5, 1) == calibration.p_value(np.asarray([3.5]))[0]


def test_a_request_promise_is_kept() -> None:
    generator = np.random.default_rng(3)
    rows, rejected, tried = 4, 0, 0
    for _ in range(40):
        calibration = replace(example(400), clean_risks=generator.normal(size=400), clean_scores=np.zeros((400, 3)))
        worst = generator.normal(size=(50, rows)).max(axis=1)
        rejected += sum(calibration.request_p_value(float(risk), rows) <= 0.1 for risk in worst)
        tried += 50
    assert 0.06 < rejected / tried < 0.14
    any_row = 1 - (1 - 0.1) ** rows
    assert any_row > 0.3, "what rows = 'any' would have lost"


def test_a_request_larger_than_the_calibration_is_refused() -> None:
    with pytest.raises(PromiseError, match="request of 301 rows"):
        example(300).request_p_value(0.0, 301)


# The cascade.


def test_a_higher_level_is_always_riskier() -> None:
    risk = np.asarray([-1e9, -3.0, 0.0, 3.0, 1e9])
    levels = [cascade_risk(level, risk) for level in range(3)]
    assert all((np.diff(one) > 0).all() for one in levels)
    assert all(lower.max() < upper.min() for lower, upper in pairwise(levels))


def test_the_squash_keeps_neighbouring_ranks() -> None:
    risk = np.linspace(-60, 60, 100_001)
    assert (np.diff(cascade_risk(1, risk)) > 0).all()


# Ties.


def test_jitter_comes_from_the_item_alone() -> None:
    images = np.random.default_rng(0).random((50, 1, 4, 4), dtype=np.float32)
    found = jitter(images)
    assert np.array_equal(found, jitter(images))
    assert np.array_equal(found[::-1], jitter(images[::-1]))
    assert len(np.unique(found)) == 50
    assert ((found >= 0) & (found < JITTER_RISK)).all()
    assert JITTER_RISK < 1e-7, "below float32 tolerance"


# Detectors one by one.


def test_detector_p_values_are_two_sided_and_null_where_it_did_not_run() -> None:
    calibration = example(300)
    scores = np.asarray([[9.0, 0.0, np.nan], [-9.0, np.nan, 0.0]])
    p = calibration.detector_p_values(scores)
    assert p[0, 0] == p[1, 0] == 2 / 301
    assert p[0, 1] > 0.5
    assert np.isnan(p[0, 2])
    assert np.isnan(p[1, 1])


def test_detector_p_values_are_valid_on_clean_scores() -> None:
    generator = np.random.default_rng(0)
    calibration = replace(example(500), clean_scores=generator.normal(size=(500, 3)))
    p = calibration.detector_p_values(generator.normal(size=(4000, 3)))
    for rate in (0.05, 0.2):
        assert abs((p <= rate).mean() - rate) < 0.035


# On disk.


def round_trip(arrays: dict[str, NDArray[Any]]) -> Calibration:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as archive:
        return Calibration.from_arrays({name: archive[name] for name in archive.files})


def test_it_survives_a_file() -> None:
    before = example()
    after = round_trip(before.to_arrays())
    scores = np.random.default_rng(4).normal(size=(30, 3))
    assert (after.detectors, after.programs, after.bands) == (before.detectors, before.programs, before.bands)
    assert np.array_equal(after.fusions[1].risk(scores), before.fusions[1].risk(scores))
    assert np.array_equal(after.clean_risks, before.clean_risks)
    assert np.array_equal(after.clean_scores, before.clean_scores)


def test_one_program_alone_survives_a_file() -> None:
    before = example()
    one = Calibration(("a",), (1,), before.fusions[:1], (), before.clean_risks, before.clean_scores[:, :1])
    assert round_trip(one.to_arrays()).bands == ()


@pytest.mark.parametrize("name", sorted(example(20).to_arrays()))
def test_a_field_that_is_missing(name: str) -> None:
    arrays = example(20).to_arrays()
    del arrays[name]
    with pytest.raises(BundleError, match=name):
        Calibration.from_arrays(arrays)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("programs", np.asarray([2, 1])),
        ("programs", np.asarray([1, 3])),
        ("programs", np.asarray(["x", "y"])),
        ("detectors", np.asarray(["a", "b"])),
        ("bands", np.zeros((0, 2))),
        ("bands", np.zeros((2, 2))),
        ("bands", np.zeros((1, 3))),
        ("bands", np.full((1, 2), np.nan)),
        ("clean_scores", np.zeros((7, 3))),
        ("clean_scores", np.zeros((20, 2))),
        ("clean_scores", np.full((20, 3), np.nan)),
        ("clean_risks", np.zeros(19)),
        ("clean_risks", np.full(20, np.nan)),
        ("clean_risks", np.zeros(0)),
        ("fusion1_weights", np.full((3, 2, len(HINGE_DEVIATIONS)), -1.0)),
        ("fusion1_weights", np.full((3, 2, len(HINGE_DEVIATIONS)), np.nan)),
        ("fusion1_weights", np.zeros((3, 2, 1))),
        ("fusion1_tails", np.full((2, 3), -1.0)),
        ("fusion1_tails", np.full((2, 3), np.nan)),
        ("fusion1_tails", np.zeros((2, 2))),
        ("fusion1_alone", np.asarray([0.0, -1.0])),
        ("fusion1_alone", np.asarray([np.inf, 1.0])),
        ("fusion1_alone", np.zeros(3)),
        ("fusion1_knots", np.zeros((2, 9))),
        ("fusion1_levels", np.zeros(3)),
        ("fusion1_bias", np.asarray([1.0, 2.0])),
    ],
)
def test_a_file_that_contradicts_itself(name: str, value: NDArray[Any]) -> None:
    with pytest.raises(BundleError):
        Calibration.from_arrays({**example(20).to_arrays(), name: value})


# The figures of a report.


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (3, 50), (499, 1000)])
def test_wilson_is_where_the_normal_score_of_the_rate_is_196(hits: int, trials: int) -> None:
    """Each end is the true rate from which what was found lies 1.96 standard deviations away."""
    low, high = wilson(hits, trials)
    assert 0 <= low <= hits / trials <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            away = abs(hits / trials - end) / math.sqrt(end * (1 - end) / trials)
            assert away == pytest.approx(1.959963984540054, abs=1e-9)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_auroc_is_sklearns() -> None:
    generator = np.random.default_rng(0)
    negative, positive = generator.integers(0, 9, 80).astype(float), generator.integers(3, 12, 60).astype(float)
    target = np.concatenate([np.zeros(80), np.ones(60)])
    assert auroc(negative, positive) == pytest.approx(roc_auc_score(target, np.concatenate([negative, positive])))
    assert auroc([0.0], [1.0]) == 1.0
    assert auroc([1.0], [1.0]) == 0.5
