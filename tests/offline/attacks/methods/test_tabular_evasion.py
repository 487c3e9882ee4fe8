"""Tabular evasion: on a linear model it spends its cost as the closed form does, and not on what may not change."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from guard.feature_values import check_values
from guard.features import CATEGORICAL, INTEGER, NUMERIC, Feature, box_of
from guard.manifest import InputSpec
from guard.offline.attacks.methods.tabular_evasion import TabularEvasion
from guard.offline.attacks.model import TorchModel
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import grid_for
from tests.offline.attacks.linear import linear, optimum

# One more unit of cost brings, of hours 4 / 1, trade 1.5 / 0.5, debt 2 / 2; of age, which may not change, 9 / 1.
FEATURES = (
    Feature("age", INTEGER, 0, 96, step=1, immutable=True),
    Feature("hours", INTEGER, 0, 40, step=1),
    Feature("debt", NUMERIC, 0, 10, step=0.5, cost=2.0),
    Feature("trade", CATEGORICAL, 0, 2, categories=(0, 1, 2), cost=0.5),
)
SPEC = InputSpec("x", "FP32", (4,), *box_of(FEATURES), None, "NC", FEATURES)
START = [48.0, 20.0, 5.0, 0.0]


class Sum(nn.Module):
    """Two logits: the second is a weighted sum of shares of ranges, with a weight for each trade; unit space."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        trade = torch.tensor([0.0, -1.0, 1.5])[torch.round(unit[:, 3] * 2).long()]
        score = 9 * unit[:, 0] + 4 * unit[:, 1] - 2 * unit[:, 2] + trade + self.bias
        return torch.stack([-score / 2, score / 2], dim=1)


def attacked(cost: float, bias: float = -50.0) -> list[float]:
    grid = grid_for(SPEC)
    assert isinstance(grid, FeatureGrid)
    clean = torch.from_numpy(SPEC.box.to_unit(np.asarray([START], np.float32)))
    attack = TabularEvasion(cost=cost)
    model, labels = TorchModel(Sum(bias).eval()), torch.tensor([0])
    found = attack.among(grid, model, clean, labels, torch.Generator().manual_seed(0)).numpy()
    assert (grid.cost(found, clean.numpy()) <= cost + 1e-6).all()
    wire = SPEC.box.from_unit(found)
    check_values(wire, FEATURES, "attacked", steps=True)
    return [float(value) for value in wire[0]]


def test_costs_are_spent_on_what_brings_most_for_them() -> None:
    """Hours have half their range left, trade costs 0.5 at once, debt 1 for half its range, in steps of a twentieth."""
    assert attacked(0.3) == [48, 32, 5, 0]
    assert attacked(0.6) == [48, 40, 4.5, 0]
    assert attacked(1.08) == [48, 40, 5, 2]
    assert attacked(1.5) == [48, 40, 2.5, 2]
    assert attacked(9.0) == [48, 40, 0, 2]


def test_it_stops_at_the_first_item_that_fools() -> None:
    """From a score of -0.1 the first sixth of the cost is enough; what is left is not spent."""
    score = 9 * 0.5 + 4 * 0.5 - 2 * 0.5
    assert attacked(0.6, bias=-score - 0.1) == [48, 24, 5, 0]


def test_without_features_it_reaches_the_optimum_of_a_linear_model() -> None:
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, "l1")
    for item in range(0, len(inputs), 6):
        one, label = inputs[item : item + 1], labels[item : item + 1]
        for share, fooled in ((1.1, True), (0.95, False)):
            attack = TabularEvasion(cost=share * nearest[item].item())
            points = attack(model, one, label, torch.Generator().manual_seed(0))
            assert (model(points).argmax(dim=1) != label).item() is fooled
