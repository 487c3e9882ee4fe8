"""The choice of detectors takes what catches an attack that nothing was fitted on, and says what more would buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from guard.errors import ConfigError, DataError
from guard.fusion import Floats
from guard.offline.data.attacked import Attacked
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.evidence.forwards import floor_of, forwards_by_need
from guard.offline.evidence.kinds.gradients import InputGradient, Noise, NoisedGradients
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from guard.offline.training.choose_detectors import Option, choose, forwards_of, sets_within
from guard.offline.training.family_scores import FamilyScores

GRADIENT, COARSE, SMOOTH = InputGradient(), DenoisedLogits(BitDepth(4)), DenoisedLogits(Median(2))
FAMILIES, ITEMS, RATES = ("first", "second", "third"), 400, (0.02, 0.1)

# How far an attack moves each candidate, in clean deviations: of its own family, which the heads have not seen, and of
# the others. `memory` knows whatever family its head was fitted on, and no other.
FREE, MEMORY, HONEST, BEST = (0.5, 0.5), (0.0, 8.0), (2.5, 2.5), (5.0, 5.0)
MOVES: Mapping[str, tuple[float, float]] = {"free": FREE, "memory": MEMORY, "honest": HONEST, "best": BEST}
OPTIONS = (
    Option("free", "free", {}),
    Option("memory", "memory", {GRADIENT: 1.0}),
    Option("honest", "honest", {COARSE: 1.0}),
    Option("best", "best", {COARSE: 1.0, SMOOTH: 1.0}),
)


def scores(seed: int, items: int, moves: Sequence[float]) -> Floats:
    drawn: Floats = np.random.default_rng(seed).normal(0, 1, (items, len(MOVES))) + np.asarray(moves)
    return drawn


def planted(family: str, seed: int = 0) -> FamilyScores:
    others = [name for name in FAMILIES if name != family]
    own, seen = ([move[place] for move in MOVES.values()] for place in (0, 1))
    still = [0.0] * len(MOVES)
    learned = Attacked(scores(seed + 2, ITEMS, seen), tuple(others[i % len(others)] for i in range(ITEMS)))
    judged = Attacked(scores(seed + 3, ITEMS, own), (family,) * ITEMS)
    return FamilyScores(family, scores(seed, ITEMS, still), scores(seed + 1, ITEMS // 2, still), learned, judged)


PLANTED = tuple(planted(family, 10 * place) for place, family in enumerate(FAMILIES))


@pytest.mark.parametrize(
    ("limit", "chosen", "more"),
    [(1.0, ("free",), ("free", "honest")), (2.0, ("free", "honest"), ("free", "honest", "best"))],
)
def test_what_only_knows_the_families_it_saw_is_not_taken(
    limit: float, chosen: tuple[str, ...], more: tuple[str, ...]
) -> None:
    found = choose(OPTIONS, PLANTED, limit, RATES)
    assert found.chosen.detectors == chosen
    assert found.chosen.forwards <= limit
    assert found.next_forward is not None
    assert found.next_forward.detectors == more
    assert found.next_forward.worst > found.chosen.worst
    assert found.facts["chosen"]["worst_attack"] in FAMILIES


def test_few_items_choose_nothing() -> None:
    """One item that happens to move what catches nothing else does not make it the worst attack's detector."""
    (first, *_), still = PLANTED, [0.0] * len(MOVES)
    lucky = scores(5, 1, still)
    lucky[0, list(MOVES).index("memory")] = 60.0
    rare = replace(first, family="rare", judged=Attacked(lucky, ("rare",)))
    before, after = (choose(OPTIONS, families, 2.0, RATES) for families in (PLANTED, (*PLANTED, rare)))
    assert (after.chosen.detectors, after.chosen.worst) == (before.chosen.detectors, before.chosen.worst)
    parts = tuple(f"{first.family} {place % 50}" for place in range(ITEMS))
    together = choose(OPTIONS, (replace(first, judged=Attacked(first.judged.items, parts)), *PLANTED[1:]), 2.0, RATES)
    assert together.chosen.worst == before.chosen.worst, "attacks of few items judge together"
    with pytest.raises(DataError, match="no attack has 20 items"):
        choose(OPTIONS, [replace(one, judged=rare.judged) for one in PLANTED], 2.0, RATES)


def test_a_limit_above_everything_leaves_nothing_to_buy() -> None:
    found = choose(OPTIONS, PLANTED, 9.0, RATES)
    assert found.chosen.detectors[-1] == "best"
    assert found.next_forward is None


def test_on_the_frontier_more_forwards_catch_more() -> None:
    frontier = choose(OPTIONS, PLANTED, 9.0, RATES).frontier
    assert [one.detectors for one in frontier[:2]] == [("free",), ("free", "honest")]
    assert all(a.forwards < b.forwards and a.rank[:2] < b.rank[:2] for a, b in pairwise(frontier))


def test_an_attack_is_judged_by_nothing_that_saw_its_family() -> None:
    """Other items of a family change what is caught of it; of the others no more than by the share it chooses."""
    other = replace(PLANTED[0], judged=Attacked(scores(99, ITEMS, (9.0,) * len(MOVES)), PLANTED[0].judged.by))
    before, after = (choose(OPTIONS, found, 9.0, RATES) for found in (PLANTED, (other, *PLANTED[1:])))
    assert before.frontier[0].worst_attack == "first" or before.frontier[0].worst <= after.frontier[0].worst
    assert after.frontier[0].worst_attack != "first"
    assert after.frontier[0].mean > before.frontier[0].mean
    unlearnable = replace(PLANTED[0], learned=Attacked(PLANTED[0].learned.items * np.nan, PLANTED[0].learned.by))
    with pytest.raises(Exception, match="not finite"):  # so the learned items are what a fusion is fitted on
        choose(OPTIONS, (unlearnable, *PLANTED[1:]), 9.0, RATES)


def test_a_tie_goes_to_the_cheaper_set() -> None:
    twin = (*OPTIONS[:3], Option("honest", "honest with a further pass", {COARSE: 1.0, GRADIENT: 1.0}))
    same = tuple(
        replace(
            one,
            clean=one.clean[:, [0, 1, 2, 2]],
            noisy=one.noisy[:, [0, 1, 2, 2]],
            learned=one.learned.seen_as(one.learned.items[:, [0, 1, 2, 2]]),
            judged=one.judged.seen_as(one.judged.items[:, [0, 1, 2, 2]]),
        )
        for one in PLANTED
    )
    found = choose([twin[0], *twin[2:]], [one.of([0, 2, 3]) for one in same], 3.0, RATES)
    assert found.chosen.detectors == ("free", "honest")
    assert found.next_forward is None


def test_no_candidate_within_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--cost 1.5: no detector.*the cheapest costs 2"):
        choose(OPTIONS[1:3], [one.of([1, 2]) for one in PLANTED], 1.5, RATES)


def test_sets_hold_all_that_their_passes_give_and_of_a_name_the_fullest() -> None:
    squeezers = [("both", {COARSE: 1.0, SMOOTH: 1.0}), ("coarse", {COARSE: 1.0}), ("smooth", {SMOOTH: 1.0})]
    options = [Option("free", "free", {}), *(Option("squeezing", text, passes) for text, passes in squeezers)]
    assert set(sets_within(options, 9.0)) == {(0,), (0, 1), (0, 2), (0, 3)}
    assert set(sets_within(options, 2.0)) == {(0,), (0, 2), (0, 3)}
    assert set(sets_within(options, 1.0)) == {(0,)}


def test_shared_passes_are_paid_once() -> None:
    assert forwards_of(OPTIONS) == 1 + 3
    assert floor_of([Logits(), Latent("a"), GRADIENT, GRADIENT, COARSE]) == 1 + 2
    noised = NoisedGradients(Noise(0.1, rows=2))
    assert forwards_by_need([noised]) == {noised: 4, InputGradient(): 1}, "the item's own gradient comes with it"
