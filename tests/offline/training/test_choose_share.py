"""The share of the rate for evidence that needs no attacks: chosen by families left out, the worst of them."""

from __future__ import annotations

import numpy as np
import pytest

import guard.offline.training.choose_share as choosing
from guard.fusion import Floats, Fusion
from guard.offline.data.attacked import Attacked
from guard.offline.training.choose_share import (
    MAX_SEEN_LOSS_SHARE,
    TRIED_RATE_SHARES,
    FamilyTrial,
    KeptShare,
    choose_share,
    share_caught,
    share_of_others,
    try_family,
)
from guard.offline.training.family_scores import MIN_JUDGED_ITEMS, FamilyScores
from guard.offline.training.fit_fusion import INDEPENDENT_RATE_SHARE, SURPRISE_RATE_SHARE, fit_fusion
from tests.spy import spied

FAMILIES = {"a": "A", "a2": "A", "b": "B", "c": "C"}
INDEPENDENT = (False, False, False, True)


def scores(items: int, seed: int, shift: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> Floats:
    """Normal scores [item, detector], each detector moved by its shift."""
    return np.asarray(np.random.default_rng(seed).normal(size=(items, len(shift))) + np.asarray(shift))


def attacked(without: str, strength: float, *names: str) -> Attacked[Floats]:
    """Each attack moves the last detector a little, and that which knows its family far, unless it was left out."""
    parts = []
    for seed, name in enumerate(names):
        shift = [0.0, 0.0, 0.0, 2.0]
        if FAMILIES[name] != without:
            shift["ABC".index(FAMILIES[name])] = strength
        parts.append(scores(100, 10 + seed, tuple(shift)))
    return Attacked(np.concatenate(parts), tuple(name for name in names for _ in range(100)))


def left_out(*names: str, strength: float = 6.0) -> list[FamilyScores]:
    found = []
    for family in sorted({FAMILIES[name] for name in names}):
        own = [name for name in names if FAMILIES[name] == family]
        every = attacked(family, strength, *names)
        judged = np.asarray([attack in own for attack in every.by])
        parts = [
            Attacked(every.items[kept], tuple(attack for attack in every.by if (attack in own) == is_own))
            for kept, is_own in ((~judged, False), (judged, True))
        ]
        found.append(FamilyScores(family, scores(1200, 0), scores(300, 1), *parts))
    return found


def unknown_caught(rate_share: float, rate: float = 0.05) -> float:
    """Share caught of an attack that moves the last detector alone, by a fusion fitted on all three families."""
    fusion = fit_fusion(scores(1200, 0), scores(300, 1), attacked("", 6.0, "a", "b", "c"), INDEPENDENT, rate_share)
    threshold = np.quantile(fusion.risk(scores(20_000, 2)), 1 - rate)
    return float((fusion.risk(scores(2000, 5, (0.0, 0.0, 0.0, 2.0))) > threshold).mean())


def test_detectors_that_know_one_family_each_do_not_win_against_one_that_needs_no_attacks() -> None:
    found = choose_share(left_out("a", "b", "c"), INDEPENDENT)
    assert found.rate_share > INDEPENDENT_RATE_SHARE
    assert min(found.caught.values()) > min(found.usual_caught.values()) + 0.02
    assert unknown_caught(found.rate_share) > unknown_caught(INDEPENDENT_RATE_SHARE) + 0.02


def test_a_share_that_costs_the_seen_families_much_is_not_taken() -> None:
    """Where what is seen is seen barely, a large share would lose more of it than is allowed."""
    barely = left_out("a", "b", "c", strength=2.5)
    free = choose_share(barely, INDEPENDENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "MAX_SEEN_LOSS_SHARE", 1.0)
        unbound = choose_share(barely, INDEPENDENT)
    assert unbound.rate_share == max(TRIED_RATE_SHARES) > free.rate_share
    assert 0 < MAX_SEEN_LOSS_SHARE < 0.1


def test_the_worst_family_decides_and_not_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """One share catches 90, 90 and 10 %, another half of each; of what is seen all catch the same."""
    caught = {0.1: (0.9, 0.9, 0.1), 0.5: (0.5, 0.5, 0.5)}
    asked: list[float] = []
    add = choosing.add_surprise

    def noting(*arguments: object) -> Fusion:
        asked.append(float(arguments[-1]))  # type: ignore[arg-type]
        return add(*arguments)  # type: ignore[arg-type]

    def known(fusion: Fusion, clean: Floats, judged: Attacked[Floats]) -> float:
        if len(set(judged.by)) > 1:
            return 0.8
        return caught.get(asked[-1], (0.2, 0.2, 0.2))["abc".index(judged.by[0])]

    monkeypatch.setattr(choosing, "add_surprise", noting)
    monkeypatch.setattr(choosing, "share_caught", known)
    found = choose_share(left_out("a", "b", "c"))
    assert found.rate_share == 0.5
    assert found.caught == pytest.approx({"A": 0.5, "B": 0.5, "C": 0.5})
    assert found.usual_caught == pytest.approx({"A": 0.9, "B": 0.9, "C": 0.1})
    assert str(found).startswith("50% of the rate")
    assert "50% caught of the worst" in str(found)


def rows(values: Floats) -> set[bytes]:
    return {row.tobytes() for row in values}


def test_a_family_judges_only_what_was_fitted_on_none_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attacks of a family are left out together, and clean items that set a threshold were not fitted on."""
    fits, judged = spied(monkeypatch, choosing, "fit_weights"), spied(monkeypatch, choosing, "share_caught")
    given = {one.family: one for one in left_out("a", "a2", "b", "c")}
    choose_share(list(given.values()), INDEPENDENT)
    assert len(fits) == 6
    left = [call for call in judged if len({FAMILIES[attack] for attack in call.given["judged"].by}) == 1]
    assert len(left) == len(judged) / 2
    for call in left:
        fitted = next(one.given for one in fits if one.result.weights is call.given["fusion"].weights)
        (family,) = {FAMILIES[attack] for attack in call.given["judged"].by}
        assert {FAMILIES[attack] for attack in fitted["attacked"].by} == {"A", "B", "C"} - {family}
        assert not rows(fitted["attacked"].items) & rows(call.given["judged"].items)
        assert rows(call.given["judged"].items) == rows(given[family].judged.items)
        assert not rows(fitted["clean"]) & rows(call.given["clean"])
        assert rows(fitted["clean"]) | rows(call.given["clean"]) == rows(given[family].clean)


def test_without_families_to_leave_out_the_share_is_the_usual_one() -> None:
    assert choose_share([]) == KeptShare(SURPRISE_RATE_SHARE)
    assert choose_share([], INDEPENDENT) == KeptShare(INDEPENDENT_RATE_SHARE)
    assert "the usual share" in str(KeptShare(0.1))


def test_where_no_share_is_better_the_usual_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "share_caught", lambda *_: 0.5)
    for independent, usual in (((), SURPRISE_RATE_SHARE), (INDEPENDENT, INDEPENDENT_RATE_SHARE)):
        assert choose_share(left_out("a", "b", "c"), independent).rate_share == usual


def test_a_family_is_judged_at_the_share_that_the_others_choose() -> None:
    """A and B are caught better with a large share, C with the usual one; of two families neither judges the other."""

    def trial(family: str, usual: float, large: float, items: int = 50) -> FamilyTrial:
        return FamilyTrial(family, items, {0.3: usual, 0.7: large}, {0.3: 0.9, 0.7: 0.9}, {})

    a, b, c = trial("A", 0.2, 0.6), trial("B", 0.3, 0.5), trial("C", 0.4, 0.1)
    assert share_of_others([a, b, c], c, 0.3) == 0.7
    assert share_of_others([a, b, c], a, 0.3) == 0.3, "C would be caught worse"
    assert share_of_others([a, c], c, 0.3) == 0.3
    few = trial("B", 0.3, 0.5, items=MIN_JUDGED_ITEMS - 1)
    assert share_of_others([a, few, c], c, 0.3) == 0.3, "no family of few items chooses"


def test_attacks_are_counted_at_the_promised_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    given = next(one for one in left_out("a", "a2", "b", "c") if one.family == "A")
    found = try_family(given, INDEPENDENT, (0.02, 0.1))
    assert sorted(found.by_attack) == sorted(TRIED_RATE_SHARES)
    assert all(set(caught) == {"a", "a2"} for caught in found.by_attack.values())
    monkeypatch.setattr(choosing, "JUDGED_RATES", (0.02, 0.1))
    same = try_family(given, INDEPENDENT, (0.02, 0.1))
    for share, caught in same.by_attack.items():
        assert np.mean(list(caught.values())) == pytest.approx(same.caught[share])


def test_what_is_caught_is_counted_at_each_rate_and_each_attack_counts_alike() -> None:
    fusion = fit_fusion(scores(1200, 0), scores(300, 1), attacked("", 6.0, "a"))
    far, near = np.full((1, 4), 50.0), np.full((1, 4), -0.01)
    judged = Attacked(np.concatenate([far, near, near, near]), ("a", "b", "b", "b"))
    assert share_caught(fusion, scores(1200, 0), judged) == 0.5
