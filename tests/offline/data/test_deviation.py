"""The deviation that numbers are divided by, of numbers that are constant but for rounding."""

from __future__ import annotations

import torch

from guard.offline.data.deviation import spread_of


def test_what_varies_has_its_own_deviation() -> None:
    values = 3.0 + torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spread_of(values), values.std(dim=0))


def test_what_is_constant_but_for_rounding_is_the_same_in_another_runtime() -> None:
    constant = torch.tensor([0.0, 0.03, 37.3, -5000.0])
    rounded = constant * (1 + 1e-6 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0)))
    for finest in (1.0, 0.02):
        away = (rounded - constant) / spread_of(rounded, finest=finest)
        assert float(away.abs().max()) < 0.05 * finest


def test_a_constant_zero_can_be_divided_by() -> None:
    assert bool((spread_of(torch.zeros(9, 2)) > 0).all())
