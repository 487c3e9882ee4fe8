"""Fusion learns from both tails, and the cascade's bands are no way around the guard."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from guard.calibration import Band, Floats, auroc
from guard.offline.fusion import RESTING, band_leak, early_reject, family_shares, fit_fusion, logistic


def scores(items: int, seed: int, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Floats:
    """Three detectors; `shift` moves each."""
    return np.asarray(np.random.default_rng(seed).normal(size=(items, 3)) + np.asarray(shift), dtype=np.float64)


CLEAN, NOISY, FRESH = scores(200, 0), scores(100, 1, (0.3, 0.0, 0.0)), scores(2000, 2)


def test_an_attack_is_found_in_the_tail_it_goes_to() -> None:
    """One family pushes the first detector up, the other the second one down; the third says nothing."""
    up, down = scores(100, 3, (3.0, 0.0, 0.0)), scores(100, 4, (0.0, -3.0, 0.0))
    fusion = fit_fusion(CLEAN, NOISY, np.concatenate([up, down]), ("up",) * 100 + ("down",) * 100)
    clean = fusion.risk(FRESH)
    for shift, wanted in (((3.0, 0.0, 0.0), 0.9), ((0.0, -3.0, 0.0), 0.9)):
        assert auroc(clean, fusion.risk(scores(500, 5, shift))) > wanted
    strength = fusion.weights.sum(axis=2)
    assert strength[0, 0] > 5 * strength[0, 1]
    assert strength[1, 1] > 5 * strength[1, 0]


def test_weights_are_never_negative_and_every_tail_counts_a_little() -> None:
    """Even where the attack makes a detector look calmer than clean: an unknown kind of surprise is never welcome."""
    calm = scores(150, 6) * 0.1
    calm[:, 0] += 3
    fusion = fit_fusion(CLEAN, NOISY, calm, ("calm",) * 150)
    assert (fusion.weights >= 0).all()
    assert (fusion.weights[..., 0] >= RESTING).all()
    far = np.asarray([[0.0, 0.0, 50.0], [0.0, 0.0, -50.0], [0.0, 0.0, 0.0]])
    risk = fusion.risk(far)
    assert min(risk[0], risk[1]) > risk[2]


def test_without_attacks_every_tail_weighs_the_same() -> None:
    fusion = fit_fusion(CLEAN, NOISY, CLEAN[:0], ())
    assert np.ptp(fusion.weights.sum(axis=2)) == 0
    clean = fusion.risk(FRESH)
    assert auroc(clean, fusion.risk(scores(500, 7, (0.0, 0.0, 6.0)))) > 0.85
    assert auroc(clean, fusion.risk(scores(500, 7, (-6.0, 0.0, 0.0)))) > 0.85


def test_without_noise_it_fits_too() -> None:
    fusion = fit_fusion(CLEAN, NOISY[:0], scores(100, 3, (3.0, 0.0, 0.0)), ("up",) * 100)
    assert auroc(fusion.risk(FRESH), fusion.risk(scores(500, 5, (3.0, 0.0, 0.0)))) > 0.9


def test_swapped_labels_teach_nothing() -> None:
    """Clean and attacked swapped, or dealt out by chance, before fitting: no better than chance afterwards."""
    attacked = scores(200, 8, (2.0, 0.0, 0.0))
    truth = scores(1000, 9, (2.0, 0.0, 0.0))
    honest = fit_fusion(CLEAN, NOISY[:0], attacked, ("a",) * 200)
    assert auroc(honest.risk(FRESH), honest.risk(truth)) > 0.85
    swapped = fit_fusion(attacked, NOISY[:0], CLEAN, ("a",) * 200)
    assert auroc(swapped.risk(FRESH), swapped.risk(truth)) < 0.5
    mixed = np.random.default_rng(10).permutation(np.concatenate([CLEAN, attacked]))
    dealt = fit_fusion(mixed[:200], NOISY[:0], mixed[200:], ("a",) * 200)
    found = auroc(dealt.risk(FRESH), dealt.risk(truth))
    assert found < auroc(honest.risk(FRESH), honest.risk(truth)) - 0.1


def test_a_detector_that_always_says_the_same_does_no_harm() -> None:
    clean, attacked = CLEAN.copy(), scores(100, 3, (3.0, 0.0, 0.0))
    clean[:, 2] = attacked[:, 2] = 7.0
    fusion = fit_fusion(clean, NOISY[:0], attacked, ("up",) * 100)
    fresh = FRESH.copy()
    fresh[:, 2] = 7.0
    assert np.isfinite(fusion.risk(fresh)).all()
    assert auroc(fusion.risk(fresh), fusion.risk(attacked)) > 0.9


def test_families_weigh_the_same_whatever_their_size() -> None:
    shares = family_shares(("a",) * 90 + ("b",) * 10)
    assert shares[:90].sum() == pytest.approx(0.5)
    assert shares[90:].sum() == pytest.approx(0.5)


def test_a_small_family_is_not_drowned() -> None:
    large, small = scores(400, 3, (3.0, 0.0, 0.0)), scores(20, 4, (0.0, 0.0, 5.0))
    fusion = fit_fusion(CLEAN, NOISY, np.concatenate([large, small]), ("large",) * 400 + ("small",) * 20)
    assert auroc(fusion.risk(FRESH), fusion.risk(scores(500, 6, (0.0, 0.0, 5.0)))) > 0.9


def test_the_combiner_is_logistic_regression_where_that_has_non_negative_slopes() -> None:
    generator = np.random.default_rng(0)
    features = np.abs(generator.normal(size=(600, 4)))
    target = (generator.random(600) < 1 / (1 + np.exp(-(features @ [2.0, 1.0, 0.5, 1.5] - 3)))).astype(np.float64)
    slopes, bias = logistic(features, target, np.full(600, 1 / 300))
    scale = features.std(axis=0)
    # Ours: sum of loss/600 + 3e-3 |w|^2 in scaled features; theirs: C * sum of loss + |w|^2 / 2.
    reference = LogisticRegression(C=1 / (600 * 2 * 3e-3), tol=1e-9, max_iter=2000).fit(features / scale, target)
    np.testing.assert_allclose(slopes * scale, reference.coef_[0], rtol=1e-2)
    assert bias == pytest.approx(reference.intercept_[0], rel=1e-2)


# Bands.


@pytest.mark.parametrize("tail", ["exponential", "normal"])
def test_early_reject_takes_a_fortieth_of_the_promise_from_fresh_clean_items_and_passes_nobody(tail: str) -> None:
    """So it is where risk thins out exponentially, and less where it thins out faster."""
    generator = np.random.default_rng(0)
    band = early_reject(getattr(generator, tail)(size=2000), 0.04)
    taken = (getattr(generator, tail)(size=400_000) > band.high).mean()
    assert band.low == -np.inf
    assert 5e-4 < taken < 2e-3 if tail == "exponential" else 0 < taken < 1e-3


def test_early_reject_takes_more_where_more_was_promised() -> None:
    risk = np.random.default_rng(0).normal(size=2000)
    assert early_reject(risk, 0.05).high < early_reject(risk, 0.01).high


@pytest.mark.parametrize("items", [2, 10, 150])
def test_too_few_items_decide_nothing_early(items: int) -> None:
    assert early_reject(np.arange(items, dtype=np.float64), 0.04) == Band()


def test_where_clean_items_all_look_the_same_nothing_is_decided_early() -> None:
    assert early_reject(np.zeros(1000), 0.04) == Band()


def test_no_family_leaks_through_an_early_pass_that_does_not_exist() -> None:
    risk = np.asarray([-9.0, 0.0, 1.0, 5.0])
    assert band_leak(Band(high=2.0), risk, ("a", "a", "b", "b")) == {"a": 0.0, "b": 0.0}
    assert band_leak(Band(low=0.5), risk, ("a", "a", "b", "b")) == {"a": 1.0, "b": 0.0}
