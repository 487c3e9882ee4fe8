"""What is the deletion's own; the laws of every attack are in test_table.py."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import nn

from guard.errors import ConfigError
from guard.offline.attacks.methods.ig_deletion import (
    IgDeletion,
    baseline_of,
    highest,
    ig_deletion,
    integrated_gradients,
    shares,
)
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import LogOdds, log_odds
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.8  # of all items: by how much it beats random changes of as many values by as much
BUDGET = 0.1


class Odds(nn.Module):
    """The log-odds as captum reads them: one output an item."""

    def __init__(self, model: TorchModel, labels: torch.Tensor) -> None:
        super().__init__()
        self.model, self.labels = model, labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return log_odds(self.model(x), self.labels.repeat(len(x) // len(self.labels)))


def test_contributions_are_captums():
    digits = trained()
    inputs, labels = digits.inputs[:6], digits.labels[:6]
    reference = captum.attr.IntegratedGradients(Odds(digits.model, labels)).attribute(
        inputs, baselines=torch.full_like(inputs, 0.25), n_steps=12, method="riemann_middle"
    )
    end = torch.full_like(inputs, 0.25)
    ours = integrated_gradients(digits.model, inputs, end, LogOdds(labels), 12)
    torch.testing.assert_close(-ours, reference.to(ours.dtype), atol=1e-4, rtol=1e-4)


def test_contributions_add_up_to_what_deleting_everything_changes():
    digits = trained()
    objective, end = LogOdds(digits.labels), torch.zeros_like(digits.inputs)
    found = integrated_gradients(digits.model, digits.inputs, end, objective, 200).flatten(1).sum(dim=1)
    change = objective(digits.model(end)) - objective(digits.model(digits.inputs))
    torch.testing.assert_close(found, change, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("baseline", ["contrary", "black"])
def test_beats_random_changes_of_its_size_on_held_out_items(baseline):
    digits = trained()
    attacked = ig_deletion(digits.model, digits.inputs, digits.labels, budget=BUDGET, baseline=baseline)
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN


@pytest.mark.parametrize("baseline", ["mean", "blur"])
def test_what_people_delete_with_fools_too_with_more_values(baseline):
    digits = trained()
    attacked = ig_deletion(digits.model, digits.inputs, digits.labels, budget=3 * BUDGET, baseline=baseline)
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN


@pytest.mark.parametrize("budget", [1 / 64, 0.04, BUDGET])
def test_no_value_beyond_the_budget_is_touched_and_what_is_touched_is_the_baseline(budget):
    digits = trained()
    attacked = ig_deletion(digits.model, digits.inputs, digits.labels, budget=budget, baseline="black")
    changed = attacked != digits.inputs
    assert changed.flatten(1).sum(dim=1).max() <= int(budget * 64)
    assert (attacked[changed] == 0).all()


def test_its_objective_rises_and_fooled_items_rest():
    digits = trained()
    before = log_odds(digits.model(digits.inputs), digits.labels)
    attacked = ig_deletion(digits.model, digits.inputs, digits.labels, budget=BUDGET, rounds=6)
    assert (log_odds(digits.model(attacked), digits.labels) > before).all()
    more = ig_deletion(digits.model, attacked, digits.labels, budget=BUDGET)
    over = digits.model(attacked).argmax(dim=1) != digits.labels
    assert torch.equal(more[over], attacked[over])


def test_targets_are_reached():
    digits = trained()
    targets = (digits.labels + 1) % 10
    points = ig_deletion(digits.model, digits.inputs, digits.labels, budget=0.5, targets=targets)
    assert (digits.model(points).argmax(dim=1) == targets).float().mean() > 0.7


def test_parts():
    assert shares(7, 3) == [2, 2, 3]
    assert shares(2, 5) == [1, 1]
    assert shares(0, 5) == []
    gain = torch.tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -2.0, -3.0, 5.0]])
    assert highest(gain, 2).tolist() == [[True, False, True, False], [False, False, False, True]]
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    assert baseline_of(TorchModel(nn.Identity()), image, LogOdds(torch.zeros(1).long()), "mean").max() == pytest.approx(
        1 / 25
    )
    assert baseline_of(TorchModel(nn.Identity()), image, LogOdds(torch.zeros(1).long()), "blur")[
        0, 0, 2, 2
    ] == pytest.approx(0.04)


def test_what_cannot_be_built_says_why():
    with pytest.raises(ConfigError, match="share of at most 1"):
        IgDeletion(budget=1.5)
    with pytest.raises(ConfigError, match="wanted one of contrary, black, mean, blur"):
        IgDeletion(budget=0.1, baseline="white")
