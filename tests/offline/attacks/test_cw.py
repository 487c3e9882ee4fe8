"""What is Carlini and Wagner's own; the attack's laws are in test_table.py."""

from __future__ import annotations

import torch

from guard.offline.attacks.cw import Cw, cw
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import gap
from tests.offline.attacks.linear import linear, optimum


def test_confidence_is_kept_and_costs_distance():
    model, inputs, labels = linear(4, scale=3.0)
    plain, sure = cw(model, inputs, labels), cw(model, inputs, labels, confidence=1.0)
    assert (gap(model(sure), labels) >= 1.0).all()
    assert (sizes(sure - inputs, "l2") > sizes(plain - inputs, "l2")).all()
    assert Cw(confidence=1.0).family == "high-confidence"
    assert Cw().family == "low-confidence"


def test_targets_are_reached():
    model, inputs, labels = linear(4)
    _, nearest = optimum(model, inputs, labels, "l2")
    others = torch.stack(
        [
            torch.arange(4)[(torch.arange(4) != a) & (torch.arange(4) != b)][0]
            for a, b in zip(labels, nearest, strict=True)
        ]
    )
    assert (model(cw(model, inputs, labels, targets=others)).argmax(dim=1) == others).all()


def test_what_cannot_be_fooled_comes_back_as_it_was():
    inputs = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    inputs[0, 0], inputs[0, 1] = 0.0, 1.0
    attacked = cw(
        lambda x: x.sum(dim=1, keepdim=True) * 0 + torch.tensor([1.0, 0.0]), inputs, torch.zeros(3).long(), steps=5
    )
    assert torch.equal(attacked, inputs)


def test_more_searches_never_enlarge_the_perturbation():
    model, inputs, labels = linear(4)
    few, many = (sizes(cw(model, inputs, labels, searches=n) - inputs, "l2") for n in (2, 7))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-4).any()


def test_an_item_that_starts_on_the_border_of_the_box_can_leave_it():
    model, _, _ = linear(2)
    inputs = (model.weight[0] - model.weight[1] > 0).float()[None]  # the corner furthest into class 0
    label = model(inputs).argmax(dim=1)
    assert model(cw(model, inputs, label)).argmax(dim=1) != label


def test_items_that_arrived_rest():
    rows = []

    def counting(x):
        rows.append(len(x))
        return torch.stack([x[:, 0] * 0, 10 * (x[:, 0] - 0.6)], dim=1)

    cw(counting, torch.tensor([[0.59], [0.0]]), torch.zeros(2).long(), steps=100, searches=1, constant=0.1)
    assert min(rows) == 1
    assert len(rows) <= 100
