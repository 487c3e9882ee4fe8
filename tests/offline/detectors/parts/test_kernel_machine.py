"""A kernel machine as tensors has scikit-learn's decision for every item."""

from __future__ import annotations

import numpy as np
import torch

from guard.offline.detectors.parts.kernel_machine import FIT_ITEMS, fit_machine, fitted_svc


def test_every_item_has_scikit_learns_decision() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 3, (300, 12), generator=generator).float()
    attacked = (numbers[:, 0] == numbers[:, 1]) | (numbers[:, 2] > 1)
    weights = torch.rand(300, generator=generator)
    machine = fit_machine(numbers, attacked, weights, torch.Generator().manual_seed(1))
    drawn = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:FIT_ITEMS]
    own = fitted_svc(numbers[drawn], attacked[drawn], weights[drawn])
    expected = own.decision_function(numbers.double().numpy())
    np.testing.assert_allclose(machine(numbers).numpy(), expected, atol=1e-4)
    assert ((machine(numbers).numpy() > 0) == (expected > 0)).all()
    assert ((expected > 0) == attacked.numpy()).mean() > 0.8
