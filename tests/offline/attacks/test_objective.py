"""The loss that gradient attacks climb."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import cross_entropy, softplus

from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import gap, log_odds

LOGITS = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
LABELS = torch.randint(5, (20,), generator=torch.Generator().manual_seed(1))
TARGETS = (LABELS + 1) % 5


def test_cross_entropy_is_softplus_of_log_odds():
    torch.testing.assert_close(softplus(log_odds(LOGITS, LABELS)), cross_entropy(LOGITS, LABELS, reduction="none"))
    torch.testing.assert_close(
        softplus(-log_odds(LOGITS, LABELS, TARGETS)), cross_entropy(LOGITS, TARGETS, reduction="none")
    )


def test_gradient_survives_where_cross_entropy_has_none():
    sure = torch.tensor([[300.0, 0.0, -5.0]], requires_grad=True)
    label = torch.tensor([0])
    (dead,) = torch.autograd.grad(cross_entropy(sure, label), sure)
    (alive,) = torch.autograd.grad(log_odds(sure, label).sum(), sure)
    assert not dead.any()
    torch.testing.assert_close(alive[0, :2], torch.tensor([-1.0, 1.0]), atol=0.01, rtol=0)


def test_gap_is_above_zero_exactly_when_the_answer_is_the_wanted_one():
    answers = LOGITS.argmax(dim=1)
    assert torch.equal(gap(LOGITS, LABELS) > 0, answers != LABELS)
    assert torch.equal(gap(LOGITS, LABELS, TARGETS) > 0, answers == TARGETS)


def test_gradient_reaches_the_points_and_nothing_else():
    model = torch.nn.Linear(4, 5).double().eval()
    points = torch.rand(20, 4, dtype=torch.float64)
    with torch.no_grad():  # even inside no_grad
        logits, values, gradient = TorchModel(model).value_and_gradient(points, partial(log_odds, labels=LABELS))
    assert model.weight.grad is None
    assert not points.requires_grad
    assert not any(t.requires_grad for t in (logits, values, gradient))
    wrong = logits.scatter(1, LABELS[:, None], -torch.inf).softmax(dim=1)
    torch.testing.assert_close(gradient, wrong @ model.weight.detach() - model.weight.detach()[LABELS])
