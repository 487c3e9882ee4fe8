"""What is SmoothGrad's own; the attack's laws are in test_table.py."""

from __future__ import annotations

import pytest
import torch

from guard.offline.attacks.methods.smoothgrad import averaged, smoothgrad
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import LogOdds, log_odds
from tests.offline.attacks.linear import linear
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.6  # of all items: by how much it beats random perturbations of the same size


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("norm", "budget"), [("linf", 0.1), ("l2", 0.8)])
def test_beats_noise_of_its_size_on_held_out_items(norm, budget):
    digits = trained()
    attacked = smoothgrad(
        digits.model, digits.inputs, digits.labels, budget=budget, steps=10, generator=seeded(), norm=norm
    )
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN
    assert (sizes(attacked - digits.inputs, norm) <= budget + 1e-6).all()


def test_its_objective_rises_for_every_item_and_further_with_more_steps():
    digits = trained()
    reached = []
    for steps in (1, 10):
        points = smoothgrad(digits.model, digits.inputs, digits.labels, budget=0.05, steps=steps, generator=seeded())
        reached.append(log_odds(digits.model(points), digits.labels))
    assert (reached[0] > log_odds(digits.model(digits.inputs), digits.labels)).all()
    assert (reached[1] >= reached[0] - 1e-3).float().mean() > 0.9


def test_targets_are_reached():
    digits = trained()
    targets = (digits.labels + 1) % 10
    points = smoothgrad(
        digits.model, digits.inputs, digits.labels, budget=0.3, steps=20, generator=seeded(), targets=targets
    )
    assert (digits.model(points).argmax(dim=1) == targets).float().mean() > 0.9


def test_the_average_of_a_constant_gradient_is_that_gradient():
    model, inputs, labels = linear(2)
    objective = LogOdds(labels)
    mean = averaged(model, inputs, objective, 5, 0.1, seeded())
    torch.testing.assert_close(mean, model.value_and_gradient(inputs, objective)[2])


def test_the_average_hides_a_ripple_that_a_point_sees():
    """A gentle slope towards class 1 beneath a steep ripple: the point's gradient is wrong half of the time."""

    def ripple(x: torch.Tensor) -> torch.Tensor:
        ahead = (x + 0.02 * torch.sin(200 * x)).sum(dim=1)
        return torch.stack([torch.zeros_like(ahead), ahead], dim=1)

    rippled = TorchModel(ripple)
    inputs, objective = torch.rand(8, 30, generator=seeded(1)), LogOdds(torch.zeros(8, dtype=torch.long))
    plain = rippled.value_and_gradient(inputs, objective)[2]
    smooth = averaged(rippled, inputs, objective, 64, 0.05, seeded())
    assert (plain > 0).float().mean() < 0.7
    assert (smooth > 0).float().mean() > 0.95
