"""What is FGSM's own; its laws are in test_table.py."""

from __future__ import annotations

import torch

from guard.offline.attacks.methods.fgsm import fgsm
from tests.offline.attacks.linear import linear, optimum


def test_one_step_of_the_whole_budget_along_the_sign():
    model, inputs, labels = linear(2)
    away = model.module.weight[1 - labels] - model.module.weight[labels]
    torch.testing.assert_close(fgsm(model, inputs, labels, budget=0.05), inputs + 0.05 * away.sign())


def test_one_l2_step_lies_along_the_gradient():
    model, inputs, labels = linear(2)
    away = model.module.weight[1 - labels] - model.module.weight[labels]
    wanted = inputs + 0.05 * away / away.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fgsm(model, inputs, labels, budget=0.05, norm="l2"), wanted)


def test_targets_are_walked_towards():
    model, inputs, labels = linear(5)
    _, targets = optimum(model, inputs, labels, "linf")
    before = model(inputs).log_softmax(dim=1).gather(1, targets[:, None])
    after = model(fgsm(model, inputs, labels, budget=0.02, targets=targets)).log_softmax(dim=1)
    assert (after.gather(1, targets[:, None]) > before).all()
