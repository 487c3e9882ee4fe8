"""The code of a layer counts thresholds."""

from __future__ import annotations

import pytest
import torch

from guard.offline.detectors.safetynet import Coder


def test_a_code_counts_the_thresholds_that_are_exceeded() -> None:
    coder = Coder(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([1.0, 10.0]))
    neurons = torch.tensor([[-1.0, 0.0], [1.0, 2.0], [5.0, 9.0], [0.01, 1.1]])
    assert coder(neurons).tolist() == [[0, 0], [1, 1], [2, 2], pytest.approx([0.5, 0.5])]
    moved = neurons.clone().requires_grad_()
    assert torch.equal(coder(moved), coder(neurons))
    (slope,) = torch.autograd.grad(coder(moved).sum(), moved)
    assert bool((slope > 0).all()), "an attacker's sigmoid has a slope everywhere"
