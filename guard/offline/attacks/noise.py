"""Size-matched noise: an attack's perturbation with its entries shuffled, so that only its size remains."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid, moved_inside


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
