"""Ranges of settings: each item draws its own, from itself, and attacks keep to what it drew."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.bim import Bim
from guard.offline.attacks.methods.cw import Cw
from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.frame import Frame, UniversalFrame
from guard.offline.attacks.methods.gd_uap import GdUap
from guard.offline.attacks.methods.patch import Patch
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.methods.rfgsm import Rfgsm
from guard.offline.attacks.methods.smoothgrad import SmoothGrad
from guard.offline.attacks.methods.uap import Uap
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.ranges import AnyOf, Range, drawn_for, largest, places_of, ranged, smallest
from guard.offline.attacks.table import ATTACKS, budget_norm, build_attack, settings_of, traits_of
from tests.offline.attacks.linear import linear, optimum
from tests.offline.attacks.test_table import network, seeded

HASHES = [f"item {number}" for number in range(6)]
PGD = Pgd(
    budget=[0.02, 0.3],
    steps=[3, 20],
    step_factor=[1.0, 8.0],
    optimiser=["sign", "momentum", "adam"],
    random_start=[True, False],
)
WRITTEN: tuple[Attack, ...] = (
    PGD,
    Pgd(budget=[0.2, 1.0], norm="l2", steps=[3, 20], optimiser=["sign", "momentum", "adam"]),
    Pgd(budget=[0.5, 4.0], norm="l1", steps=[3, 20], optimiser=["sign", "momentum"]),
    Bim(budget=[0.02, 0.3]),
    Fgsm(budget=[0.02, 0.3]),
    Fgsm(budget=[0.2, 3.0], norm="l1"),
    Rfgsm(budget=[0.02, 0.3]),
    SmoothGrad(budget=[0.02, 0.3], steps=4),
    DeepFool(overshoot=[0.01, 0.3]),
    Cw(confidence=[0.1, 2.0], steps=20, searches=2),
    Frame(budget=[0.1, 0.5]),
    Uap(budget=[0.02, 0.3], epochs=2),
    GdUap(budget=[0.02, 0.3], steps=4),
    Patch(budget=[0.1, 0.5], epochs=2),
    UniversalFrame(budget=[0.2, 0.5], epochs=2),
)
# What else the table's attacks state that may be a range is tried with these.
EXAMPLES = {"budget": [0.05, 0.3], "steps": [3, 8], "step_size": [0.02, 0.1]}


def untried(attacks: Iterable[Attack]) -> dict[str, set[str]]:
    """The settings by attack of the table that may be ranges or lists, and are neither in any of these attacks."""
    tried = {(attack.name, setting) for attack in attacks for setting in ranged(attack)}
    stated = {name: {*traits_of(name).ranges, *traits_of(name).choices} for name in ATTACKS}
    return {name: left for name, of in stated.items() if (left := {one for one in of if (name, one) not in tried})}


def from_examples(name: str, left: set[str]) -> Attack:
    """An attack with an example in each of these settings, where there is one, and in its budget."""
    budget = ["budget"] if budget_norm(name) else []
    return build_attack(name, {one: EXAMPLES[one] for one in (*budget, *sorted(left)) if one in EXAMPLES})


EVERY = (*WRITTEN, *(from_examples(name, left) for name, left in untried(WRITTEN).items()))
RANGED = tuple(attack for attack in EVERY if not learns(attack))
LEARNING = tuple(attack for attack in EVERY if learns(attack))
every_ranged = pytest.mark.parametrize("attack", RANGED, ids=repr)


def test_every_setting_that_may_be_a_range_is_tried():
    assert untried(EVERY) == {}, "EXAMPLES in tests/offline/attacks/test_ranges.py wants a range for these settings"
    for name in ATTACKS:
        assert {*traits_of(name).ranges, *traits_of(name).choices} <= set(settings_of(name))


def test_numbers_are_drawn_evenly_in_their_logarithm():
    places = places_of("key", [str(number) for number in range(4000)])
    budgets = Range(0.002, 0.06).at(places)
    assert budgets.min() >= 0.002
    assert budgets.max() <= 0.06
    halves = (budgets < math.sqrt(0.002 * 0.06)).double().mean()
    assert abs(halves - 0.5) < 0.03
    steps = Range(5, 40, whole=True).at(places)
    assert set(steps.tolist()) == set(range(5, 41))
    assert abs((steps < 14).double().mean() - math.log(14 / 5) / math.log(41 / 5)) < 0.03
    chosen = AnyOf(("sign", "adam", "momentum")).at(places)
    assert all(abs(chosen.count(name) / 4000 - 1 / 3) < 0.03 for name in set(chosen))


@every_ranged
def test_an_item_draws_the_same_whoever_is_beside_it(attack):
    together = drawn_for(attack, HASHES, 3)
    turned = drawn_for(attack, HASHES[::-1], 3)
    for name in ranged(attack):
        here, there = getattr(together, name), getattr(turned, name)
        alone = [getattr(drawn_for(attack, [one], 3), name)[0] for one in HASHES]
        assert list(here) == list(there)[::-1] == alone
        assert list(getattr(drawn_for(attack, HASHES, 4), name)) != list(here) or isinstance(here, tuple)


@every_ranged
def test_each_item_keeps_to_what_it_drew(attack):
    model, inputs, labels = network("images")
    told = drawn_for(attack, HASHES, 0)
    attacked = told(model, inputs, labels, seeded())
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    if told.budget is not None:
        assert len(set(told.budget.tolist())) == len(inputs)
        moved = attacked - inputs
        size = (moved != 0).flatten(1).double().mean(dim=1) if attack.norm == "l0" else sizes(moved, attack.norm)
        assert (size <= told.budget + 1e-6).all()
        assert (size > 0.4 * told.budget).any()
    assert torch.equal(drawn_for(attack, HASHES, 0)(model, inputs, labels, seeded()), attacked)


@pytest.mark.parametrize("attack", [a for a in RANGED if not a.traits.draws_for_batch], ids=repr)
def test_a_ranged_item_is_attacked_as_by_the_single_values_that_it_drew(attack):
    """Wherever nothing is drawn on the way: each item alone, by an attack without ranges, ends at the same point."""
    model, inputs, labels = network("images")
    model.module.double()
    inputs = inputs.double()
    calm = build_attack(
        attack.name, {**settings(attack), **({"random_start": False} if "random_start" in settings(attack) else {})}
    )
    told = drawn_for(calm, HASHES, 0)
    together = told(model, inputs, labels, seeded())
    for item in range(len(inputs)):
        values = {name: plain(getattr(told, name)[item]) for name in ranged(calm)}
        single = build_attack(attack.name, {**settings(calm), **values})
        one = single(model, inputs[item : item + 1], labels[item : item + 1], seeded())
        torch.testing.assert_close(together[item : item + 1], one, atol=1e-5, rtol=0)


def settings(attack: Attack) -> dict[str, object]:
    """The settings of an attack as a recipe gives them."""
    values = {name: getattr(attack, name) for name in settings_of(attack.name)}
    return {name: as_list(value) for name, value in values.items() if value is not None}


def as_list(value: object) -> object:
    match value:
        case Range():
            return [value.low, value.high]
        case AnyOf():
            return list(value.values)
        case _:
            return value


def plain(value: object) -> object:
    return value.item() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("attack", LEARNING, ids=repr)
def test_what_learns_draws_one_budget_when_it_learns_and_keeps_it(attack):
    model, inputs, labels = network("images")
    budgets = []
    for seed in range(3):
        ready = Informed(attack, attack.learn(model, inputs, labels, seeded(seed)))
        assert smallest(attack.budget) <= ready.budget <= largest(attack.budget)
        attacked = ready(model, inputs, labels, seeded())
        moved = attacked - inputs
        places = (moved != 0).any(dim=1).flatten(1).double().mean(dim=1)
        size = places if attack.norm == "l0" else sizes(moved, attack.norm)
        assert (size <= ready.budget + 1e-6).all()
        budgets.append(ready.budget)
    assert len(set(budgets)) == 3
    assert drawn_for(attack, HASHES, 0) is attack


@pytest.mark.parametrize("attack", EVERY, ids=repr)
def test_prints_as_the_call_that_makes_it(attack):
    assert eval(repr(attack), dict(ATTACKS)) == attack


def test_budgets_on_a_grid_are_whole_steps_within_the_range():
    told = drawn_for(Fgsm(budget=[1.2 / 255, 15.9 / 255]), [str(n) for n in range(300)], 0, step=1 / 255)
    steps = told.budget * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    assert set(steps.round().int().tolist()) == set(range(2, 16))
    assert drawn_for(Fgsm(budget=0.1), ["a"], 0, step=1 / 255).budget == 0.1


def test_nothing_attacks_before_it_has_drawn():
    model, inputs, labels = network("images")
    with pytest.raises(ValueError, match="no item has drawn from it yet"):
        PGD(model, inputs, labels, seeded())


@pytest.mark.parametrize("optimiser", ["sign", "momentum", "adam"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_optimiser_comes_near_the_optimum_of_a_linear_model(optimiser, norm):
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, norm)
    reach = 1.6 if (norm, optimiser) == ("l2", "adam") else 1.1  # Adam moves all coordinates alike, in L2 at a price
    for item in range(0, len(inputs), 3):
        one, label = inputs[item : item + 1], labels[item : item + 1]
        for share, fooled in ((reach, True), (0.95, False)):
            attack = Pgd(budget=share * nearest[item].item(), norm=norm, steps=60, optimiser=optimiser)
            answer = model(attack(model, one, label, seeded())).argmax(dim=1)
            assert (answer != label).item() is fooled, (item, share)


def test_optimisers_go_different_ways():
    model, inputs, labels = network("images")
    ends = [
        Pgd(budget=0.1, steps=12, optimiser=o)(model, inputs, labels, seeded()) for o in ("sign", "momentum", "adam")
    ]
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[1], ends[2])


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("pgd", {"budget": [0.1, 0.05]}, "0 < low < high"),
        ("pgd", {"budget": [0.1, 0.1]}, "0 < low < high"),
        ("fgsm", {"budget": [0, 0.3]}, "0 < low < high"),
        ("pgd", {"budget": [0.1, 0.2, 0.3]}, r"a range of two: \[low, high\]"),
        ("pgd", {"budget": ["a", "b"]}, r"a range of two: \[low, high\]"),
        ("pgd", {"budget": []}, r"a range of two: \[low, high\]"),
        ("pgd", {"budget": 0.1, "steps": [2.5, 4]}, "whole number"),
        ("pgd", {"budget": 0.1, "optimiser": "adm"}, "sign, momentum, adam"),
        ("pgd", {"budget": 0.1, "optimiser": ["sign", "adm"]}, "sign, momentum, adam"),
        ("pgd", {"budget": 0.1, "optimiser": ["sign"]}, "two different values"),
        ("pgd", {"budget": 0.1, "optimiser": ["sign", "sign"]}, "two different values"),
        ("pgd", {"budget": 0.1, "norm": "l1", "optimiser": ["sign", "adam"]}, "in L1"),
        ("pgd", {"budget": 0.1, "random_start": ["yes", "no"]}, "true, false or both"),
        ("pgd", {"budget": 0.1, "norm": ["l2", "linf"]}, "taken for budget, steps"),
        ("pgd", {"budget": 0.1, "step_size": 0.1, "step_factor": 3.0}, "wanted one of them"),
        ("square", {"budget": [0.1, 0.2]}, "takes no ranges"),
        ("cw", {"steps": [10, 20]}, "taken for confidence"),
        ("patch", {"budget": [0.5, 1.5]}, "at most 1"),
    ],
)
def test_what_is_no_range_says_why(name, given, words):
    with pytest.raises(ConfigError, match=words):
        build_attack(name, given)
