"""Targets, and every attack that takes one."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family
from guard.offline.attacks.methods.bim import Bim, bim
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.table import ATTACKS, build_attack, settings_of
from guard.offline.attacks.target import Target, targets_of
from tests.offline.attacks.linear import linear

ONE_FOR_ALL: tuple[Family, ...] = ("universal", "patch")  # their target is one class, the same for all items
BUDGET = 0.3


def required(name):
    return {"budget": BUDGET} if "budget" in settings_of(name) else {}


NAMES = [
    name
    for name in ATTACKS
    if "target" in settings_of(name) and build_attack(name, required(name)).family not in ONE_FOR_ALL
]
every_target = pytest.mark.parametrize("target", get_args(Target))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def aimed(name, target):
    return build_attack(name, {**required(name), "target": target})


@every_target
def test_a_target_is_never_the_label(target):
    model, inputs, labels = linear(5)
    least = model(inputs).argmin(dim=1)  # as labels too: then it is the least likely of the others
    for given in (labels, least):
        targets = targets_of(target, model, inputs, given, seeded())
        assert targets.shape == labels.shape
        assert targets.dtype == torch.int64
        assert (targets != given).all()
        assert targets.min() >= 0
        assert targets.max() < 5


def test_which_class_it_is():
    model, inputs, labels = linear(5)
    assert torch.equal(targets_of("least_likely", model, inputs, labels, seeded()), model(inputs).argmin(dim=1))
    assert torch.equal(targets_of("next", model, inputs, labels, seeded()), (labels + 1) % 5)
    assert targets_of(None, model, inputs, labels, seeded()) is None
    drawn = targets_of("random", model, inputs.repeat(200, 1), labels.repeat(200), seeded())
    shares = torch.bincount((drawn - labels.repeat(200)) % 5, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), atol=0.03, rtol=0)
    assert not torch.equal(drawn, targets_of("random", model, inputs.repeat(200, 1), labels.repeat(200), seeded(1)))


@every_target
@pytest.mark.parametrize("name", NAMES)
def test_every_aimed_attack_reaches_its_target(name, target):
    model, inputs, labels = linear(4, scale=10.0)
    attack = aimed(name, target)
    first = seeded()
    targets = targets_of(target, model, inputs, labels, first)
    attacked = attack(model, inputs, labels, seeded())
    before = (model(inputs).argmax(dim=1) == targets).float().mean()
    after = (model(attacked).argmax(dim=1) == targets).float().mean()
    assert before == 0
    assert after >= (0.3 if attack.family == "single-step" else 0.9)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    if attack.budget is not None:
        assert (sizes(attacked - inputs, attack.norm) <= attack.budget + 1e-6).all()
    assert torch.equal(attack(model, inputs, labels, seeded()), attacked)
    assert eval(repr(attack), dict(ATTACKS)) == attack


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_is_not_known_is_an_error(name):
    with pytest.raises(ConfigError, match="wanted one of least_likely, random, next"):
        aimed(name, "nearest")


def test_without_a_target_it_prints_as_before():
    assert "target" not in repr(Pgd(budget=0.1))
    assert "target='next'" in repr(Pgd(budget=0.1, target="next"))


def test_bim_is_pgd_without_a_random_start():
    model, inputs, labels = linear(5)
    plain = Pgd(budget=0.1, steps=7, step_size=0.02, random_start=False)
    assert torch.equal(
        Bim(budget=0.1, steps=7, step_size=0.02)(model, inputs, labels, seeded()),
        plain(model, inputs, labels, seeded(1)),
    )


@pytest.mark.parametrize(("levels", "steps"), [(1, 2), (2, 3), (8, 10), (16, 20), (32, 36)])
def test_bim_takes_the_original_number_of_steps_of_one_level(levels, steps):
    model, inputs, labels = linear(3)
    calls = []
    bim(TorchModel(lambda x: calls.append(1) or model(x)), inputs, labels, budget=levels / 255)
    assert len(calls) == steps + 1
