"""What is Carlini and Wagner's own; the attack's laws are in test_table.py."""

from __future__ import annotations

import torch

from guard.offline.attacks.methods.cw import Cw, cw, slope
from guard.offline.attacks.model import TorchModel
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
        TorchModel(lambda x: x.sum(dim=1, keepdim=True) * 0 + torch.tensor([1.0, 0.0])),
        inputs,
        torch.zeros(3).long(),
        steps=5,
    )
    assert torch.equal(attacked, inputs)


def test_more_searches_never_enlarge_the_perturbation():
    model, inputs, labels = linear(4)
    few, many = (sizes(cw(model, inputs, labels, searches=n) - inputs, "l2") for n in (2, 7))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-4).any()


def test_an_item_that_starts_on_the_border_of_the_box_can_leave_it():
    model, _, _ = linear(2)
    inputs = (model.module.weight[0] - model.module.weight[1] > 0).float()[None]  # the corner furthest into class 0
    label = model(inputs).argmax(dim=1)
    assert model(cw(model, inputs, label)).argmax(dim=1) != label


def test_items_that_arrived_rest():
    rows = []

    def counting(x):
        rows.append(len(x))
        return torch.stack([x[:, 0] * 0, 10 * (x[:, 0] - 0.6)], dim=1)

    cw(TorchModel(counting), torch.tensor([[0.59], [0.0]]), torch.zeros(2).long(), steps=100, searches=1, constant=0.1)
    assert rows[-1] == 1
    assert sum(rows) < 2 * 100


def test_items_that_are_far_enough_ahead_are_spared_the_backward():
    model, inputs, labels = linear(4)
    with_gradient = []

    class Counting(TorchModel):
        def value_and_gradient(self, points, objective):
            found = model.value_and_gradient(points, objective)
            with_gradient.append(len(points))
            return found

    assert torch.equal(cw(Counting(model), inputs, labels), cw(model, inputs, labels))
    rows = []
    cw(TorchModel(lambda x: rows.append(len(x)) or model(x)), inputs, labels)
    assert sum(with_gradient) < 0.7 * sum(rows)
    # and what is spared was not needed: the slope is the loss's own gradient for every item
    walk = torch.atanh(2 * inputs - 1)
    weight, ahead = torch.full((len(inputs),), 3.0), torch.where(torch.arange(len(inputs)) % 2 == 0, 1.0, -1.0)
    for confidence in (0.0, -100.0, 100.0):
        points, found, loss, gradient = slope(model, walk, inputs * 0.9, labels, weight, confidence, None, ahead)
        watched = walk.clone().requires_grad_()
        placed = (torch.tanh(watched) + 1) / 2
        short = (confidence - gap(model(placed), labels)).clamp_min(0)
        expected = (placed - inputs * 0.9).square().flatten(1).sum(dim=1) + weight * short
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), watched)[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found, gap(model(points), labels))


def test_an_item_that_is_far_from_fooled_is_reached_in_few_steps():
    model, inputs, labels = linear(2)
    far = (inputs + 0.2 * (model.module.weight[labels] - model.module.weight[1 - labels]).sign()).clamp(
        0, 1
    )  # against the attack
    attacked = cw(model, far, labels, steps=30, searches=2, learning_rate=0.05, constant=100.0)
    assert (model(attacked).argmax(dim=1) != labels).all()
