"""What is PGD's own; its laws are in test_table.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guard.offline.attacks.methods.pgd import Pgd, keep, pgd, rank, start
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import log_odds
from tests.offline.attacks.linear import linear, optimum


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_at_the_nearest_class_it_needs_little_over_the_optimum(norm):
    model, inputs, labels = linear(6, scale=20.0)
    nearest, targets = optimum(model, inputs, labels, norm)
    for item in range(0, len(inputs), 2):
        pick = slice(item, item + 1)
        attacked = pgd(
            model,
            inputs[pick],
            labels[pick],
            budget=1.1 * nearest[item].item(),
            steps=40,
            generator=seeded(0),
            norm=norm,
            targets=targets[pick],
        )
        assert model(attacked).argmax(dim=1) != labels[pick]


def test_the_start_is_random_unless_there_is_no_generator():
    model, inputs, labels = linear(3)

    def once(generator):
        return pgd(model, inputs, labels, budget=0.1, steps=1, step_size=1e-6, generator=generator)

    assert not torch.equal(once(seeded(0)), once(seeded(1)))
    torch.testing.assert_close(once(None), inputs, atol=2e-6, rtol=0)
    assert sizes(once(seeded(0)) - inputs, "linf").mean() > 0.05


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_starts_are_at_every_radius_alike(norm):
    inputs = torch.full((400, 50), 0.5)
    radius = sizes(start(inputs, 0.2, norm, seeded(0)) - inputs, norm) / 0.2
    torch.testing.assert_close(
        radius.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.25, 0.5, 0.75]), atol=0.06, rtol=0
    )


def test_random_start_is_a_setting():
    model, inputs, labels = linear(3)
    plain = Pgd(budget=0.1, steps=3, random_start=False)
    assert torch.equal(plain(model, inputs, labels, seeded(0)), plain(model, inputs, labels, seeded(1)))
    drawn = Pgd(budget=0.1, steps=3, step_size=0.001)
    assert not torch.equal(drawn(model, inputs, labels, seeded(0)), drawn(model, inputs, labels, seeded(1)))


class Bump(nn.Module):
    """Fooled only in a thin shell of radius 0.05 around the middle: a long step jumps over it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        radius = (x - 0.5).norm(dim=1)
        ahead = 1 - 100 * (radius - 0.05).abs()
        return torch.stack([torch.zeros_like(ahead), ahead], dim=1)


def test_the_best_point_is_returned_and_not_the_last():
    inputs = torch.full((1, 2), 0.5) + torch.tensor([[0.01, 0.0]])
    label = torch.zeros(1, dtype=torch.long)
    attacked = pgd(TorchModel(Bump()), inputs, label, budget=0.2, steps=41, step_size=0.021, norm="l2", generator=None)
    assert Bump()(attacked).argmax(dim=1).item() == 1


def test_a_fooling_point_is_better_than_one_of_higher_loss():
    labels = torch.tensor([0])
    fooling, unfooled = torch.tensor([[0.0, 0.1, -9.0]]), torch.tensor([[0.0, -0.01, -0.01]])
    assert log_odds(unfooled, labels) > log_odds(fooling, labels)
    assert rank(fooling, labels, None) > rank(unfooled, labels, None)
    points = torch.zeros(1, 2)
    kept, _ = keep(points, rank(fooling, labels, None), points + 1, rank(unfooled, labels, None))
    assert torch.equal(kept, points)


def test_a_confident_model_is_no_excuse():
    model, inputs, labels = linear(2, scale=1e4)  # its cross-entropy has a gradient of exactly zero
    nearest, _ = optimum(model, inputs, labels, "linf")
    attacked = pgd(model, inputs, labels, budget=1.05 * nearest.max().item(), steps=10, generator=seeded(0))
    assert (model(attacked).argmax(dim=1) != labels).all()


def test_the_default_steps_cross_the_ball_and_back():
    model, inputs, labels = linear(2)
    attacked = pgd(model, inputs, labels, budget=0.04, steps=2, generator=seeded(0))
    away = model.module.weight[1 - labels] - model.module.weight[labels]
    torch.testing.assert_close(attacked, inputs + 0.04 * away.sign())
