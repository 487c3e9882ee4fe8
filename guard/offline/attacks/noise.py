"""Noise as large as attacks: an attack's perturbation with its entries shuffled, and the sizes of other noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.ranges import largest
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid, moved_inside
from guard.offline.data.harmless_noise import Sizes


def shuffled(clean: Tensor, attacked: Tensor, generator: torch.Generator, grid: Grid = None) -> Tensor:
    """Return clean items with each one's perturbation, its entries in random places and with random signs.

    What follows is not of a table's features, which are moved as each of them may be (`FeatureGrid.noise`).

    So it has the attack's size in every norm, the attack's histogram, and lies on the grid that both arguments lie on:
    a detector that tells it from the attack has read more than size or file format. Where a sign would leave the unit
    box the other is taken; an entry over 0.5 may leave it both ways, and is cut.

    Source: the noisy negatives of Lee et al. 2018, arXiv:1807.03888, section 3.1; theirs are Gaussian, matched in L2.
    """
    if isinstance(grid, FeatureGrid):
        return torch.from_numpy(grid.noise(clean.cpu().numpy(), attacked.cpu().numpy(), generator)).to(clean.device)
    perturbation = (attacked - clean).flatten(1).to(generator.device)
    order = torch.rand(perturbation.shape, generator=generator, device=generator.device).argsort(dim=1)
    moved = perturbation.abs().gather(1, order).reshape(clean.shape).to(clean.device)
    return moved_inside(clean, moved, generator)


def noise_sizes(attacks: Sequence[Attack], grid: Grid) -> Sizes:
    """Return the sizes of harmless noise beside these attacks: up to the largest of their L-infinity budgets."""
    budgets = [largest(attack.budget) for attack in attacks if attack.norm == "linf"]
    return Sizes.up_to(max((budget for budget in budgets if budget is not None), default=None), grid)
