"""Size-matched noise."""

from __future__ import annotations

import pytest
import torch

from guard.offline.attacks.noise import shuffled
from guard.offline.data.grid import moved_inside


def pair(shape: tuple[int, ...], grid: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(grid + 1, shape, generator=generator)
    steps = torch.randint(-4, 5, shape, generator=generator)
    return clean / grid, (clean + steps).clamp(0, grid) / grid


@pytest.mark.parametrize("shape", [(30, 20), (30, 3, 5, 4)], ids=["vectors", "images"])
def test_noise_has_the_attacks_size_in_every_norm_stays_in_the_box_and_on_the_grid(shape):
    clean, attacked = pair(shape)
    noise = shuffled(clean, attacked, torch.Generator().manual_seed(1))
    for order in (1, 2, torch.inf):
        sizes = [torch.linalg.vector_norm((x - clean).flatten(1), ord=order, dim=1) for x in (noise, attacked)]
        torch.testing.assert_close(*sizes)
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert torch.equal((noise * 16).round(), noise * 16)


def test_noise_forgets_where_and_which_way():
    clean = torch.full((200, 40), 0.5)
    attacked = clean.clone()
    attacked[:, :10] += 0.1
    moved = shuffled(clean, attacked, torch.Generator().manual_seed(1)) - clean
    assert (moved.abs() > 0.05).float().mean(dim=0).sub(0.25).abs().max() < 0.15  # every place alike
    assert abs((moved > 0.05).float().sum().item() / 2000 - 0.5) < 0.05  # both signs alike


def test_a_border_is_only_left_inwards():
    clean = torch.tensor([[0.0, 1.0, 0.5]]).repeat(100, 1)
    moved = moved_inside(clean, torch.full_like(clean, 0.25), torch.Generator().manual_seed(0)) - clean
    assert torch.equal(moved[:, 0], torch.full((100,), 0.25))
    assert torch.equal(moved[:, 1], torch.full((100,), -0.25))
    assert set(moved[:, 2].tolist()) == {0.25, -0.25}
