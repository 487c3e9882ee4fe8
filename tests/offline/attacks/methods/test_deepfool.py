"""What is DeepFool's own; its laws are in test_table.py."""

from __future__ import annotations

import torch

from guard.offline.attacks.methods.deepfool import deepfool, nearest_boundary
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from tests.offline.attacks.linear import linear, optimum


def test_on_a_linear_model_one_step_ends_an_overshoot_behind_the_nearest_boundary():
    model, inputs, labels = linear(6)
    nearest, rival = optimum(model, inputs, labels, "l2")
    attacked = deepfool(model, inputs, labels, steps=1, overshoot=0.02)
    torch.testing.assert_close(sizes(attacked - inputs, "l2"), 1.02 * nearest, rtol=1e-3, atol=1e-5)
    assert torch.equal(model(attacked).argmax(dim=1), rival)


def test_the_step_is_the_shortest_to_any_rival():
    behind = torch.tensor([[1.0, 0.5]])
    normals = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]])  # the first is 1/4 away, the second 1/2
    torch.testing.assert_close(nearest_boundary(behind, normals), torch.tensor([[0.25, 0.0]]), atol=1e-5, rtol=0)


def test_only_as_many_classes_as_asked_for_are_walked_to():
    model, inputs, labels = linear(6)
    second = model(inputs).topk(2, dim=1).indices[:, 1]
    attacked = deepfool(model, inputs, labels, steps=1, classes=2)
    towards = model.module.weight[second] - model.module.weight[labels]
    cosine = torch.nn.functional.cosine_similarity(attacked - inputs, towards)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_fooled_item_is_not_touched_again():
    model, inputs, labels = linear(3)
    wrong = (labels + 1) % 3
    assert torch.equal(deepfool(model, inputs, wrong), inputs)


def test_a_flat_model_ends_where_it_began():
    inputs = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    flat = TorchModel(lambda x: x[:, :2] * 0 + torch.tensor([1.0, 0.0]))
    attacked = deepfool(flat, inputs, torch.zeros(3).long(), steps=3)
    torch.testing.assert_close(attacked, inputs)


def test_no_item_is_left_on_the_boundary_by_rounding():
    model, inputs, _ = linear(6)

    def coarse(x):  # logits far from zero have few digits left for what lies between them
        return 1000 + model(x)

    labels = coarse(inputs).argmax(dim=1)
    attacked = deepfool(TorchModel(coarse), inputs, labels, steps=10, overshoot=1e-6)
    assert (coarse(attacked).argmax(dim=1) != labels).all()
