"""Attacks that foolbox and pyautoattack run: budgets of queries, answers alone, nobody else's randomness."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from guard.errors import ConfigError
from guard.offline.attacks import adapter
from guard.offline.attacks.adapter import Drawing, Ledger, SpentError, estimate, foolbox
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.adapted import Apgd, Boundary, Fab, HopSkipJump, Square
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.table import build_attack
from guard.offline.job.recipe import parse
from tests.offline import tiny
from tests.offline.attacks.linear import linear, optimum
from tests.offline.attacks.test_table import network, seeded
from tests.side import reach

reach("zoo")

QUERIES = 300
ASKING: list[Attack] = [Square(0.03, queries=QUERIES), HopSkipJump(QUERIES, 20), Boundary(QUERIES)]
asking = pytest.mark.parametrize("attack", ASKING, ids=repr)


class Counted:
    """A model that counts how often it is asked, and by how many items at a time."""

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.sizes: list[int] = []

    def __call__(self, points: Tensor) -> Tensor:
        self.sizes.append(len(points))
        return self.model(points)


@pytest.mark.parametrize("name", ["apgd", "square", "fab", "hop_skip_jump", "boundary"])
def test_without_its_package_an_attack_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(adapter, "find_spec", lambda package: None)
    settings = {"budget": 0.1} if name in ("apgd", "square") else {}
    attack = build_attack(name, settings)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'inference-guard\[attacks\]'"):
        attack(*network("images"), seeded())
    with pytest.raises(ConfigError, match="not installed"):  # before anything is crafted
        parse({**tiny.RECIPE, "attack": [{"name": name, **settings}]}, "r")


@asking
def test_no_item_is_asked_more_often_than_its_budget(attack):
    model, inputs, labels = network("images")
    counted = Counted(model)
    attack(TorchModel(counted), inputs, labels, seeded())
    assert max(counted.sizes) <= len(inputs)
    assert 1 < len(counted.sizes) <= QUERIES


@pytest.mark.parametrize("attack", ASKING[1:], ids=repr)
def test_answers_alone_are_enough(attack):
    model, inputs, labels = network("images")

    def answers(points: Tensor) -> Tensor:
        return one_hot(model(points).argmax(dim=1), 4).float()

    assert torch.equal(attack(TorchModel(answers), inputs, labels, seeded()), attack(model, inputs, labels, seeded()))


@pytest.mark.parametrize(("attack", "factor"), [(HopSkipJump(1500), 1.1), (Boundary(1500), 1.6)], ids=repr)
def test_enough_answers_come_close_to_the_optimum(attack, factor):
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, "l2")
    attacked = attack(model, inputs, labels, seeded())
    assert (model(attacked).argmax(dim=1) != labels).all()
    ratio = sizes(attacked - inputs, "l2") / nearest
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= factor


@pytest.mark.parametrize("kind", [HopSkipJump, Boundary])
def test_more_answers_are_never_worse(kind):
    model, inputs, labels = network("images")
    few, more = (sizes(kind(n)(model, inputs, labels, seeded()) - inputs, "l2") for n in (200, 400))
    assert (more <= few).all()
    assert more.mean() < 0.9 * few.mean()


@pytest.mark.parametrize("kind", [HopSkipJump, Boundary])
def test_an_item_that_nothing_fools_comes_back_and_its_mates_are_attacked(kind):
    def stubborn(points: Tensor) -> Tensor:
        """Sure of its answer where the first pixel is dark, as in the first item and in no uniform image."""
        dark = points[:, 0, 0, 0] < 1e-9
        bright = points.flatten(1)[:, 1:].mean(dim=1) - 0.5
        return torch.stack([torch.zeros_like(bright), torch.where(dark, -1.0, bright)], dim=1)

    inputs = torch.full((3, 1, 4, 4), 0.3)
    inputs[0, 0, 0, 0] = 0.0

    def always(points: Tensor) -> Tensor:
        return torch.stack([torch.ones(len(points)), torch.zeros(len(points))], dim=1)

    labels = torch.zeros(3, dtype=torch.long)
    assert torch.equal(kind(QUERIES)(TorchModel(always), inputs, labels, seeded()), inputs)
    found = kind(QUERIES)(TorchModel(stubborn), inputs, labels, seeded())
    assert (stubborn(found[1:]).argmax(dim=1) == 1).all()


def test_squares_fool_more_often_than_noise_of_their_size():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        inputs = torch.rand(60, 3, 8, 8)
    model = TorchModel(layers.eval())
    labels = model(inputs).argmax(dim=1)
    attacked = Square(0.08, queries=200)(model, inputs, labels, seeded())
    noise = shuffled(inputs, attacked, seeded(1))
    fooled, by_noise = ((model(x).argmax(dim=1) != labels).float().mean().item() for x in (attacked, noise))
    assert fooled >= by_noise + 0.3


def test_vectors_are_refused_where_there_is_no_place():
    model, inputs, labels = network("vectors")
    for attack in (Square(0.1), Square(0.1, norm="l2")):
        with pytest.raises(ValueError, match=r"\[item, channel, height, width\]; got \(6, 9\)"):
            attack(model, inputs, labels, seeded())


def test_the_scaled_difference_of_logits_wants_three_classes():
    model, inputs, labels = linear(2)
    with pytest.raises(ValueError, match="compares three classes, and the model has 2"):
        Apgd(0.1, loss="dlr")(model, inputs, labels, seeded())
    model, inputs, labels = linear(3)
    nearest, _ = optimum(model, inputs, labels, "linf")
    attacked = Apgd(1.05 * nearest.max().item(), loss="dlr", steps=20)(model, inputs, labels, seeded())
    assert (model(attacked).argmax(dim=1) != labels).all()


def test_more_starts_are_never_worse_and_the_last_is_not_the_answer():
    model, inputs, labels = network("images")
    one, many = (Apgd(0.01, steps=10, starts=n)(model, inputs, labels, seeded()) for n in (1, 4))
    fooled_by_one, fooled_by_many = (model(x).argmax(dim=1) != labels for x in (one, many))
    assert (fooled_by_many | ~fooled_by_one).all()


def test_side_by_side_they_draw_as_they_do_alone():
    model, inputs, labels = network("images")
    attacks = [Apgd(0.02, steps=20), Square(0.02, queries=60), HopSkipJump(200, 20), Boundary(200)] * 2
    alone = [attack(model, inputs, labels, seeded(n)) for n, attack in enumerate(attacks)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(attack, model, inputs, labels, seeded(n)) for n, attack in enumerate(attacks)]
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(run.result(), expected)


def test_what_is_drawn_is_the_generators():
    before = torch.get_rng_state()
    like = torch.zeros(2, 3, dtype=torch.float64)
    with Drawing(seeded(3)):
        drawn = [torch.rand([2]), torch.randn((2, 3)), torch.randn_like(like)]
    generator = seeded(3)
    assert torch.equal(drawn[0], torch.rand(2, generator=generator))
    assert torch.equal(drawn[1], torch.randn(2, 3, generator=generator))
    assert torch.equal(drawn[2], torch.randn(2, 3, generator=generator, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_ledger_keeps_the_nearest_fooling_point_and_stops_at_its_budget():
    model, inputs, labels = linear(2)
    ledger = Ledger(model, inputs, labels, 3)
    away = (model.module.weight[1 - labels] - model.module.weight[labels]).sign()
    for step in (0.5, 0.3, 0.4):
        ledger((inputs + step * away).clamp(0, 1))
    assert torch.equal(ledger.best, (inputs + 0.3 * away).clamp(0, 1))
    with pytest.raises(SpentError):
        ledger(inputs)


def test_the_estimate_is_the_boundarys_normal_whoever_is_in_the_batch():
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, "l2")
    normals = model.module.weight[1 - labels] - model.module.weight[labels]
    normals = normals / sizes(normals, "l2")[:, None]
    on_it = inputs + nearest[:, None] * normals
    eager = type(foolbox().PyTorchModel(model.module, bounds=(0, 1), device="cpu").dummy)
    with Drawing(seeded()):
        found = estimate(
            lambda points: eager(model(points.raw).argmax(dim=1) != labels),
            eager(on_it),
            2000,
            eager(torch.full((len(inputs),), 0.01)),
        ).raw
    torch.testing.assert_close(sizes(found, "l2"), torch.ones(len(found)))
    assert (found * normals).sum(dim=1).min() > 0.95


def test_fab_looks_at_the_largest_logits_alone():
    model, inputs, labels = linear(6)
    attacked = Fab(norm="l2", classes=2)(model, inputs, labels, seeded())
    fooled = model(attacked).argmax(dim=1)
    runner_up = model(inputs).topk(2, dim=1).indices[:, 1]
    assert (fooled != labels).all()
    assert (fooled == runner_up).float().mean() > 0.5


def test_the_warning_that_is_ignored_is_ignored_once_and_nobody_else_s_filter_is_passed_over():
    """Filters hold for the whole process, and the first that fits decides: one added at every call goes before all."""
    with warnings.catch_warnings():
        adapter.ignore_mean_of_nothing()
        warnings.filterwarnings("error", "somebody's own")
        before = list(warnings.filters)
        for _ in range(3):
            adapter.ignore_mean_of_nothing()
        assert warnings.filters == before
