"""Fusion learns from both tails, and the cascade's bands are no way around the guard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from guard.calibration import Band, auroc
from guard.errors import DataError
from guard.fusion import Floats, Fusion, Surprise
from guard.offline.data.attacked import Attacked
from guard.offline.training import fit_fusion as fit_fusion_module
from guard.offline.training.fit_fusion import (
    INDEPENDENT_RATE_SHARE,
    MIN_TAIL_ITEMS,
    RESTING_SLOPE,
    SURPRISE_RATE_SHARE,
    TAIL_SHARE,
    band_leak,
    early_reject,
    exponential_tail,
    fit_fusion,
    logistic,
)


def scores(items: int, seed: int, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Floats:
    """Three detectors; `shift` moves each."""
    return np.asarray(np.random.default_rng(seed).normal(size=(items, 3)) + np.asarray(shift), dtype=np.float64)


CLEAN, NOISY, FRESH = scores(200, 0), scores(100, 1, (0.3, 0.0, 0.0)), scores(2000, 2)


def test_an_attack_is_found_in_the_tail_it_goes_to() -> None:
    """One family pushes the first detector up, the other the second one down; the third says nothing."""
    up, down = scores(100, 3, (3.0, 0.0, 0.0)), scores(100, 4, (0.0, -3.0, 0.0))
    fusion = fit_fusion(CLEAN, NOISY, Attacked(np.concatenate([up, down]), ("up",) * 100 + ("down",) * 100))
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
    fusion = fit_fusion(CLEAN, NOISY, Attacked(calm, ("calm",) * 150))
    assert (fusion.weights >= 0).all()
    assert (fusion.weights[..., 0] >= RESTING_SLOPE).all()
    far = np.asarray([[0.0, 0.0, 50.0], [0.0, 0.0, -50.0], [0.0, 0.0, 0.0]])
    risk = fusion.risk(far)
    assert min(risk[0], risk[1]) > risk[2]


def test_without_attacks_every_tail_weighs_the_same() -> None:
    fusion = fit_fusion(CLEAN, NOISY, Attacked(CLEAN[:0], ()))
    assert np.ptp(fusion.weights.sum(axis=2)) == 0
    clean = fusion.risk(FRESH)
    assert auroc(clean, fusion.risk(scores(500, 7, (0.0, 0.0, 6.0)))) > 0.85
    assert auroc(clean, fusion.risk(scores(500, 7, (-6.0, 0.0, 0.0)))) > 0.85


def test_without_noise_it_fits_too() -> None:
    fusion = fit_fusion(CLEAN, NOISY[:0], Attacked(scores(100, 3, (3.0, 0.0, 0.0)), ("up",) * 100))
    assert auroc(fusion.risk(FRESH), fusion.risk(scores(500, 5, (3.0, 0.0, 0.0)))) > 0.9


def test_swapped_labels_teach_nothing() -> None:
    """Clean and attacked swapped, or dealt out by chance, before fitting: no better than chance afterwards."""
    attacked = scores(200, 8, (2.0, 0.0, 0.0))
    truth = scores(1000, 9, (2.0, 0.0, 0.0))
    honest = fit_fusion(CLEAN, NOISY[:0], Attacked(attacked, ("a",) * 200))
    assert auroc(honest.risk(FRESH), honest.risk(truth)) > 0.85
    swapped = fit_fusion(attacked, NOISY[:0], Attacked(CLEAN, ("a",) * 200))
    assert auroc(swapped.risk(FRESH), swapped.risk(truth)) < 0.5
    mixed = np.random.default_rng(10).permutation(np.concatenate([CLEAN, attacked]))
    dealt = fit_fusion(mixed[:200], NOISY[:0], Attacked(mixed[200:], ("a",) * 200))
    found = auroc(dealt.risk(FRESH), dealt.risk(truth))
    assert found < auroc(honest.risk(FRESH), honest.risk(truth)) - 0.1


def test_a_detector_that_always_says_the_same_does_no_harm() -> None:
    clean, attacked = CLEAN.copy(), scores(100, 3, (3.0, 0.0, 0.0))
    clean[:, 2] = attacked[:, 2] = 7.0
    fusion = fit_fusion(clean, NOISY[:0], Attacked(attacked, ("up",) * 100))
    fresh = FRESH.copy()
    fresh[:, 2] = 7.0
    assert np.isfinite(fusion.risk(fresh)).all()
    assert auroc(fusion.risk(fresh), fusion.risk(attacked)) > 0.9


def test_attacks_weigh_the_same_whatever_their_size() -> None:
    shares = Attacked(None, ("a",) * 90 + ("b",) * 10).shares()
    assert shares[:90].sum() == pytest.approx(0.5)
    assert shares[90:].sum() == pytest.approx(0.5)


def test_a_small_family_is_not_drowned() -> None:
    large, small = scores(400, 3, (3.0, 0.0, 0.0)), scores(20, 4, (0.0, 0.0, 5.0))
    fusion = fit_fusion(CLEAN, NOISY, Attacked(np.concatenate([large, small]), ("large",) * 400 + ("small",) * 20))
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


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused_and_its_detector_named(part: int, value: float) -> None:
    parts = [CLEAN.copy(), NOISY.copy(), scores(100, 3, (3.0, 0.0, 0.0))]
    parts[part][7, 1] = value
    with pytest.raises(DataError, match=f"detector 2 of 3, .* not finite: 1 of {len(parts[part])}; leave it out"):
        fit_fusion(parts[0], parts[1], Attacked(parts[2], ("up",) * 100))


def test_a_fit_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_fusion_module, "MAX_FIT_STEPS", 2)
    with pytest.raises(DataError, match=r"did not converge on 400 items .*; craft more"):
        fit_fusion(CLEAN, NOISY, Attacked(scores(100, 3, (3.0, 0.0, 0.0)), ("up",) * 100))


# Surprise.


def known(clean: int = 4000, noise_at: float = 0.0) -> Fusion:
    """Fitted on one family, which moves the first detector alone; noise moves the second."""
    attacked, noisy = scores(300, 3, (4.0, 0.0, 0.0)), scores(300, 1, (0.0, noise_at, 0.0))
    return fit_fusion(scores(clean, 0), noisy, Attacked(attacked, ("known",) * 300))


def caught(fusion: Fusion, shift: tuple[float, float, float], rate: float = 0.01) -> float:
    """Share of items so shifted above the risk that `rate` of fresh clean items exceed."""
    threshold = np.quantile(fusion.risk(scores(40_000, 2)), 1 - rate)
    return float((fusion.risk(scores(2000, 5, shift)) > threshold).mean())


def test_a_family_that_was_never_crafted_is_caught_by_the_one_detector_that_it_moves() -> None:
    fusion = known()
    deaf = replace(fusion, surprise=Surprise.silent(3))
    assert caught(fusion, (0.0, 0.0, 6.0)) > 0.95 > 0.1 > caught(deaf, (0.0, 0.0, 6.0))
    assert caught(fusion, (4.0, 0.0, 0.0)) > caught(deaf, (4.0, 0.0, 0.0)) - 0.03, "and the known one as before"


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_surprise_takes_its_share_of_the_rate_from_fresh_clean_items(rate: float) -> None:
    """Within a factor of two and a half: an exponential tail is drawn through what thins out faster."""
    fusion, fresh = known(), scores(100_000, 12)
    level = np.quantile(fusion.risk(fresh), 1 - rate)
    alone = (fusion.surprise.risk(fresh) > level) & (fusion.fused(fresh) <= level)
    assert SURPRISE_RATE_SHARE * rate / 2.5 < alone.mean() < SURPRISE_RATE_SHARE * rate * 2.5


def test_a_detector_that_takes_offence_at_noise_does_not_reject_it() -> None:
    deaf_to_it = known(noise_at=6.0)
    tails = deaf_to_it.surprise.starts
    assert tails[1] > tails[0] + 3, "its tail begins within the noise"
    assert caught(deaf_to_it, (0.0, 6.0, 0.0)) < 0.05
    assert caught(known(), (0.0, 6.0, 0.0)) > 0.95, "which is a surprise where noise does not look like that"


def test_without_a_tail_nobody_is_heard_alone() -> None:
    few = int(MIN_TAIL_ITEMS / TAIL_SHARE) - 10
    surprise = fit_fusion(
        scores(few, 0), NOISY[:0], Attacked(scores(100, 3, (4.0, 0.0, 0.0)), ("known",) * 100)
    ).surprise
    assert (surprise.risk(scores(100, 5, (0.0, 0.0, 50.0))) == -np.inf).all()


def test_a_detector_that_always_says_the_same_surprises_nobody() -> None:
    clean, attacked = scores(4000, 0), scores(100, 3, (4.0, 0.0, 0.0))
    clean[:, 2] = attacked[:, 2] = 7.0
    rounded = 1 + 1e-6 * np.random.default_rng(0).standard_normal(len(clean))
    for constant in (clean[:, 2].copy(), clean[:, 2] * rounded):
        clean[:, 2] = constant
        surprise = fit_fusion(clean, NOISY[:0], Attacked(attacked, ("known",) * 100)).surprise
        assert surprise.slopes[2] == 0
    assert (surprise.slopes[:2] > 0).all()


def test_a_tail_is_where_its_share_of_an_exponential_lies_and_weights_count_as_copies_do() -> None:
    values = np.random.default_rng(0).exponential(3.0, size=20_000)
    tail = exponential_tail(values)
    assert tail is not None
    for rate in (0.05, 0.01, 1e-3):
        assert tail.at(rate) == pytest.approx(-3.0 * np.log(rate), rel=0.05)
    twice = np.concatenate([values[:5000], values])
    weights = np.where(np.arange(20_000) < 5000, 2.0, 1.0) / 25_000
    weighed, copied = exponential_tail(values, weights), exponential_tail(twice)
    assert weighed is not None
    assert copied is not None
    assert weighed.at(0.01) == pytest.approx(copied.at(0.01), rel=1e-6)


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
    assert band_leak(Band(high=2.0), Attacked(risk, ("a", "a", "b", "b"))) == {"a": 0.0, "b": 0.0}
    assert band_leak(Band(low=0.5), Attacked(risk, ("a", "a", "b", "b"))) == {"a": 1.0, "b": 0.0}


def test_what_is_independent_has_a_share_of_the_rate_that_no_other_detector_takes() -> None:
    """Whatever the attack moved; without such a detector, or where its scores have no tail, all share as before."""
    clean, noisy, fresh = scores(2000, 0), scores(500, 1), scores(20_000, 2)
    bad = Attacked(scores(300, 3, (3.0, 0.0, 0.0)), ("up",) * 300)
    shared, kept = (fit_fusion(clean, noisy, bad, independent) for independent in ((), (False, False, True)))
    assert np.flatnonzero(shared.surprise.slopes).tolist() == [0, 1, 2]
    assert np.flatnonzero(kept.surprise.slopes).tolist() == [2]
    rate, only_it = 0.05, scores(500, 5, (0.0, 0.0, 3.0))
    caught = [float((f.risk(only_it) > np.quantile(f.risk(fresh), 1 - rate)).mean()) for f in (shared, kept)]
    assert caught[1] > caught[0] + 0.05
    taken = kept.surprise.risk(fresh) > np.quantile(kept.risk(fresh), 1 - rate)
    assert INDEPENDENT_RATE_SHARE * rate / 2 < taken.mean() < INDEPENDENT_RATE_SHARE * rate * 2
    flat = clean.copy()
    flat[:, 2] = 1.0
    assert np.flatnonzero(fit_fusion(flat, noisy[:0], bad, (False, False, True)).surprise.slopes).tolist() == [0, 1]
