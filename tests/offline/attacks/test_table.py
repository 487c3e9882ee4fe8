"""Every attack's laws, over the table: an attack added there is tested by being listed."""

from __future__ import annotations

import dataclasses
import pickle
from functools import cache
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack, Family, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.table import ATTACKS, build_attack, settings_of
from guard.offline.data.norms import Measure, Norm
from tests.offline.attacks.linear import linear, optimum
from tests.side import reach

reach("zoo")  # foolbox and pyautoattack: attacks of the table are run by them

# How close to the closed-form optimum an attack that looks for the smallest perturbation must come.
FACTORS = {"cw": 1.1, "deepfool": 1.05}
SHARE = 0.25  # the budget of attacks that count values: a tenth of nine features is none
# They climb the model's own gradient all the way, and it alone: the closed form is their law. The others' laws are in
# their own test files: what is one for all items, led by answers, or has to please an autoencoder too ends beside it.
CLIMBING = (Family.SINGLE_STEP, Family.HIGH_CONFIDENCE, Family.LOW_CONFIDENCE)
# Over the optimum by how much a budget must be, where it is not 1.05: APGD never puts all into one entry, and the rest
# of R+FGSM's goes where a coin says.
REACHES = {("apgd", "l1"): 1.1, ("rfgsm", "linf"): 4.0}
# Those of whose norms there is not every one.
NORMS = {"deepfool": ("linf", "l2")}


def variants(*, budget: float = 0.1, **settings: Any) -> list[Attack]:
    """Each attack of the table in each norm that it knows, with those of `settings` that it has."""
    attacks = []
    for name in ATTACKS:
        known = settings_of(name)
        norms = NORMS.get(name, get_args(Norm)) if "norm" in known else (None,)
        for norm in norms:
            wanted = {**settings, "budget": budget, "norm": norm}
            attack = build_attack(name, {k: v for k, v in wanted.items() if k in known and v is not None})
            attacks.append(dataclasses.replace(attack, budget=SHARE) if attack.norm == "l0" else attack)
    return attacks


def ready(attack: Attack, model: Model, inputs: Tensor, labels: Tensor) -> Attack:
    """The attack, having learned from these items where it learns first."""
    return Informed(attack, attack.learn(model, inputs, labels, seeded(9))) if learns(attack) else attack


def climbing(attack: Attack) -> bool:
    return attack.family in CLIMBING and not learns(attack)


def size(perturbation: Tensor, norm: Measure) -> Tensor:
    """As budgets count: in L0 the share of an item's values, [item]."""
    return (perturbation != 0).flatten(1).double().mean(dim=1) if norm == "l0" else sizes(perturbation, norm)


def of_each_kind(attacks: list[Attack]) -> list[tuple[Attack, str]]:
    return [(a, kind) for a, kind in product(attacks, ("images", "vectors")) if kind in a.traits.kinds]


EVERY = variants(steps=20, queries=100, epochs=2, searches=4)
every_attack = pytest.mark.parametrize("attack", EVERY, ids=repr)
every_attack_and_kind = pytest.mark.parametrize(("attack", "kind"), of_each_kind(EVERY), ids=repr)


def network(kind: str) -> tuple[TorchModel, Tensor, Tensor]:
    """A small network in evaluation mode, inputs of which some touch the box, and the network's own labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "images":
            layers: list[nn.Module] = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
            inputs = torch.rand(6, 2, 6, 6)
        else:
            layers = [nn.Linear(9, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 4)]
            inputs = torch.rand(6, 9)
    model = TorchModel(nn.Sequential(*layers).eval())
    inputs = (inputs * 1.6 - 0.3).clamp(0, 1)
    with torch.no_grad():
        return model, inputs, model(inputs).argmax(dim=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A call of an attack: what it was given, what it answered, and all that it changed on the way, in words."""

    inputs: Tensor
    attacked: Tensor
    changed: list[str]


@cache
def run_of(attack: Attack, kind: str) -> Run:
    """The first call of an attack on the network of a kind, which several laws look at."""
    model, inputs, labels = network(kind)
    for parameter in model.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    kept_inputs, kept_labels = inputs.clone(), labels.clone()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    attacked = ready(attack, model, inputs, labels)(model, inputs, labels, seeded())
    weights = list(model.module.parameters())
    kept = {
        "inputs": torch.equal(inputs, kept_inputs),
        "labels": torch.equal(labels, kept_labels),
        "that inputs need no gradient": not inputs.requires_grad and inputs.grad is None,
        "weights and buffers": all(torch.equal(value, state[k]) for k, value in model.module.state_dict().items()),
        "the weights' gradients": all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in weights),
        "evaluation mode": not any(part.training for part in model.module.modules()),
        "torch's randomness": torch.equal(torch.get_rng_state(), torch_state),
        "numpy's randomness": pickle.dumps(np.random.get_state()) == numpy_state,  # noqa: NPY002
    }
    return Run(kept_inputs, attacked, [name for name, is_kept in kept.items() if not is_kept])


@every_attack
def test_takes_of_the_model_what_it_states(attack):
    """With answers that cannot be differentiated, those attacks alone go on that say that they ask for no more."""
    model, inputs, labels = network("images")

    def answers(points: Tensor) -> Tensor:
        return model(points).detach()

    def attacked(by: Model) -> Tensor:
        return ready(attack, by, inputs, labels)(by, inputs, labels, seeded())

    if attack.traits.asks == "answers":
        assert torch.equal(attacked(TorchModel(answers)), run_of(attack, "images").attacked)
    else:
        with pytest.raises((RuntimeError, ConfigError, ValueError)):
            attacked(TorchModel(answers))


@every_attack
def test_states_itself_as_class_variables(attack):
    stated = vars(type(attack))
    assert {"name", "traits"} <= set(stated)
    assert isinstance(attack.family, Family)
    assert learns(attack) == hasattr(attack, "learn")


@every_attack_and_kind
def test_stays_in_the_box_and_the_ball(attack, kind):
    run = run_of(attack, kind)
    assert run.attacked.shape == run.inputs.shape
    assert run.attacked.dtype == run.inputs.dtype
    assert not run.attacked.requires_grad
    assert run.attacked.min() >= 0
    assert run.attacked.max() <= 1
    assert not torch.equal(run.attacked, run.inputs)
    if attack.budget is not None:
        assert (size(run.attacked - run.inputs, attack.norm) <= attack.budget + 1e-6).all()


@every_attack_and_kind
def test_is_deterministic_given_its_generator(attack, kind):
    first = run_of(attack, kind).attacked
    model, inputs, labels = network(kind)
    torch.rand(3)
    assert torch.equal(ready(attack, model, inputs, labels)(model, inputs, labels, seeded()), first)


@every_attack_and_kind
def test_changes_nothing_that_it_was_given(attack, kind):
    assert run_of(attack, kind).changed == []


@every_attack
def test_works_on_a_frozen_model_inside_no_grad(attack):
    kind = "vectors" if "vectors" in attack.traits.kinds else "images"
    model, inputs, labels = network(kind)
    model.module.requires_grad_(False)
    with torch.no_grad():
        attacked = ready(attack, model, inputs, labels)(model, inputs, labels, seeded())
    assert torch.equal(attacked, run_of(attack, kind).attacked)


@pytest.mark.parametrize(
    ("attack", "kind"),
    of_each_kind(
        [a for a in variants(steps=12, epochs=4, searches=4, random_start=False) if not a.traits.draws_for_batch]
    ),
    ids=repr,
)
def test_an_item_does_not_depend_on_its_batch_mates(attack, kind):
    model, inputs, labels = network(kind)
    model.module.double()
    inputs, labels = inputs[:3].double(), labels[:3]
    attack = ready(attack, model, inputs, labels)
    together = attack(model, inputs, labels, seeded())
    alone = torch.cat([attack(model, inputs[i : i + 1], labels[i : i + 1], seeded()) for i in range(len(inputs))])
    apart = float((together - alone).abs().max())
    assert apart <= 1e-6, (
        f"{attack.name}: an item ends {apart:.3g} elsewhere when it is alone; an attack that draws for its whole batch "
        "at once states draws_for_batch=True in the traits of its class"
    )


@pytest.mark.parametrize("attack", [a for a in variants(steps=40) if a.budget is not None and climbing(a)], ids=repr)
def test_budget_just_above_the_optimum_fools_and_just_below_does_not(attack):
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, attack.norm)
    for item in range(0, len(inputs), 4):
        one, label = inputs[item : item + 1], labels[item : item + 1]
        for share, fooled in ((REACHES.get((attack.name, attack.norm), 1.05), True), (0.95, False)):
            told = dataclasses.replace(attack, budget=share * nearest[item].item())
            answer = model(told(model, one, label, seeded())).argmax(dim=1)
            assert (answer != label).item() is fooled, f"{told!r} at {share} of the optimum"


@pytest.mark.parametrize(
    ("attack", "classes"),
    list(product([a for a in variants() if a.budget is None and climbing(a)], (2, 6))),
    ids=lambda value: repr(value),
)
def test_smallest_perturbation_is_close_to_the_optimum(attack, classes):
    model, inputs, labels = linear(classes)
    nearest, _ = optimum(model, inputs, labels, attack.norm)
    attacked = attack(model, inputs, labels, seeded())
    assert (model(attacked).argmax(dim=1) != labels).all()
    ratio = sizes(attacked - inputs, attack.norm) / nearest
    worst = ratio.max() if classes == 2 else ratio.quantile(0.9)  # descent may settle on a class further away
    assert worst <= FACTORS.get(attack.name, 1.1)
    assert ratio.min() >= 1 - 1e-4


@every_attack
def test_prints_as_the_call_that_makes_it(attack):
    assert eval(repr(attack), dict(ATTACKS)) == attack
    assert repr(attack).startswith(f"{attack.name}(")
    assert ATTACKS[attack.name] is type(attack)


@every_attack
def test_a_setting_out_of_range_is_an_error(attack):
    for setting in settings_of(attack.name):
        if setting != "random_start":
            with pytest.raises(ConfigError, match=setting):
                dataclasses.replace(attack, **{setting: -1})
            with pytest.raises(ConfigError, match=setting):
                dataclasses.replace(attack, **{setting: "three"})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pdg", {}, "did you mean 'pgd'"),
        ("jsma", {}, "known: fgsm, pgd"),
        ("pgd", {"buget": 0.1}, "did you mean 'budget'"),
        ("pgd", {}, "budget"),
        ("pgd", {"budget": 0.1, "norm": "l3"}, "wanted one of linf, l2, l1"),
        ("fgsm", {"budget": float("nan")}, "above zero"),
        ("cw", {"steps": 2.5}, "whole number"),
    ],
)
def test_what_cannot_be_built_says_why(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_attack(name, settings)
