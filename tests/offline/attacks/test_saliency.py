"""Attacks on the map: what they keep stays, what they move moves further than by noise, and the model is itself."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.attacks.methods.map_keeping import MapFaking, MapKeeping
from guard.offline.attacks.methods.map_only import MapOnly, centre, overlap
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.saliency import Bending, likeness, map_of, saliency
from guard.offline.attacks.table import ATTACKS, MAP_ATTACKS
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.work.parallel import Stop
from tests.offline.attacks.test_table import seeded

BUDGET = 0.25
SHARE = 0.1
EVERY = [MapKeeping(BUDGET), MapFaking(BUDGET), MapOnly(BUDGET), MapOnly(BUDGET, aim="centre")]
every = pytest.mark.parametrize("attack", EVERY, ids=repr)


@cache
def trained() -> tuple[TorchModel, Tensor, Tensor]:
    """A small network with rectifiers, trained on scikit-learn's digits, and 48 held-out items that it has right."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10),
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(100):
        part = torch.arange(100) + 100 * (step % 15)
        loss = nn.functional.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    held_out, truth = images[1500:], labels[1500:]
    right = model(held_out).argmax(dim=1) == truth
    return TorchModel(model), held_out[right][:48], truth[right][:48]


def maps(points: Tensor) -> Tensor:
    with torch.no_grad():
        return saliency(trained()[0], points)[1]


def answers(points: Tensor) -> Tensor:
    return trained()[0](points).argmax(dim=1)


def test_the_answer_changes_and_the_map_is_kept():
    model, inputs, labels = trained()
    kept, plain = (attack(model, inputs, labels, seeded()) for attack in (MapKeeping(BUDGET), Pgd(BUDGET, steps=30)))
    both = (answers(kept) != labels) & (answers(plain) != labels)
    assert (answers(kept) != labels).float().mean() >= (answers(plain) != labels).float().mean() - 0.05
    assert both.float().mean() >= 0.5
    alike, alike_by_pgd = (likeness(maps(x), maps(inputs))[both].median() for x in (kept, plain))
    assert alike >= 0.7
    assert alike >= alike_by_pgd + 0.08


def test_the_answer_changes_and_another_map_is_shown():
    model, inputs, labels = trained()
    faked, plain = (attack(model, inputs, labels, seeded()) for attack in (MapFaking(BUDGET), Pgd(BUDGET, steps=30)))
    both = (answers(faked) != labels) & (answers(plain) != labels)
    assert both.float().mean() >= 0.5
    turned = maps(inputs).flip(1)
    like, like_by_pgd = (likeness(maps(x), turned)[both].median() for x in (faked, plain))
    assert like >= like_by_pgd + 0.08


def test_the_map_alone_changes_and_further_than_by_noise_of_the_same_size():
    model, inputs, labels = trained()
    moved = MapOnly(BUDGET, share=SHARE)(model, inputs, labels, seeded())
    noise = shuffled(inputs, moved, seeded(1))
    assert torch.equal(answers(moved), labels)
    left, left_by_noise = (overlap(maps(x), maps(inputs), SHARE).mean() for x in (moved, noise))
    assert left <= left_by_noise - 0.2


def test_the_centre_of_the_map_moves_further_than_by_noise_of_the_same_size():
    model, inputs, labels = trained()
    moved = MapOnly(BUDGET, aim="centre")(model, inputs, labels, seeded())
    noise = shuffled(inputs, moved, seeded(1))
    assert torch.equal(answers(moved), labels)
    shape = inputs.shape[2:]
    far, far_by_noise = (
        sizes(centre(maps(x), shape) - centre(maps(inputs), shape), "l2").mean() for x in (moved, noise)
    )
    assert far >= 2 * far_by_noise


@every
def test_it_stays_in_box_and_ball_depends_on_nobody_and_needs_a_torch_module(attack):
    model, inputs, labels = trained()
    inputs, labels = inputs[:4], labels[:4]
    together = attack(StoppableModel(model, Stop()), inputs, labels, seeded())
    assert together.min() >= 0
    assert together.max() <= 1
    assert sizes(together - inputs, "linf").max() <= BUDGET + 1e-6
    model.module.double()
    try:
        wide = inputs.double()
        all_at_once = attack(model, wide, labels, seeded())
        alone = torch.cat([attack(model, wide[i : i + 1], labels[i : i + 1], seeded()) for i in range(4)])
        torch.testing.assert_close(all_at_once, alone, atol=1e-6, rtol=0)
    finally:
        model.module.float()
    assert attack.traits.asks == "curvature"
    with pytest.raises(ConfigError, match="a function without layers; give a torch module instead"):
        attack(TorchModel(lambda points: model(points)), inputs, labels, seeded())


def test_what_changes_no_answer_is_in_a_table_of_its_own():
    assert not set(MAP_ATTACKS) & set(ATTACKS)
    for attack in EVERY[2:]:
        assert MAP_ATTACKS[attack.name] is type(attack)
        assert eval(repr(attack), dict(MAP_ATTACKS)) == attack
    for settings in ({"aim": "edge"}, {"share": 1.5}, {"steps": 0}, {"confidence": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            MapOnly(BUDGET, **settings)
    with pytest.raises(ValueError, match="a centre is for images"):
        MapOnly(0.1, aim="centre")(
            TorchModel(nn.Linear(5, 2).eval()), torch.rand(2, 5), torch.zeros(2).long(), seeded()
        )


@pytest.mark.parametrize(
    "rectifier",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.5, 0.5), nn.LeakyReLU(0.2), nn.GELU()],
    ids=repr,
)
def test_logits_and_maps_are_the_models_own_and_can_be_differentiated_again(rectifier):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 30), rectifier, nn.Linear(30, 30), rectifier, nn.Linear(30, 3)).eval()
        inputs = torch.rand(7, 6)
    watched = inputs.clone().requires_grad_()
    expected = model(watched)
    (gradient,) = torch.autograd.grad(expected.amax(dim=1).sum(), watched)
    points = inputs.clone().requires_grad_()
    logits, found = saliency(TorchModel(model), points)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(found, map_of(gradient), rtol=1e-6, atol=1e-7)
    (second,) = torch.autograd.grad(found.square().sum(), points)
    assert (second.abs().amax(dim=1) > 0).all()


def test_a_graph_of_aten_operators_bends_too():
    model, inputs, _ = trained()
    graph = torch.export.export(model.module, (inputs,)).module()
    points = inputs.clone().requires_grad_()
    _, found = saliency(TorchModel(graph), points)
    (second,) = torch.autograd.grad(found.square().sum(), points)
    assert (second.flatten(1).abs().amax(dim=1) > 0).all()
    torch.testing.assert_close(found.detach(), maps(inputs))


def test_bending_ends_where_it_ends():
    operand = torch.randn(5, requires_grad=True)
    with Bending():
        bent = torch.relu(operand)
    assert "Bent" in type(bent.grad_fn).__name__
    assert "Bent" not in type(torch.relu(operand).grad_fn).__name__
