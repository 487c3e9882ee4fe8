"""Step of an ascent in an L1 ball: along the signs of a small share of the coordinates, and of ever fewer.

One coordinate, the steepest step, is soon at the edge of the box, where it can gain no more; all coordinates cost more
than they gain. On images the best share depends on the budget; falling through all of them does as well as the best.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guard.offline.attacks.norm_ball import Size, per_item, room_of

FIRST_MOVED_SHARE, LAST_MOVED_SHARE = 0.05, 0.002  # share of the coordinates that move
FIRST_STEP_FACTOR = 8  # how much longer the first step is than the last


def sparse_step(points: Tensor, gradient: Tensor, stride: Size, progress: Size) -> Tensor:
    """Return a step of L1 size `stride`, more while `progress` in [0, 1] is small; coordinates at the box's edge rest.

    Both are one number for all items, or a tensor [item].

    Source: Tramèr & Boneh 2019, arXiv:1904.13000, section 4.1 (SLIDE: the top one per cent); Croce & Hein 2021,
    arXiv:2103.01208, section 3 (that the share should fall): theirs by what an item has found, ours for all alike.
    """
    flat = torch.where(room_of(points, gradient) > 0, gradient, 0).flatten(1)
    done, length = (torch.as_tensor(given, dtype=torch.float64, device=flat.device) for given in (progress, stride))
    done = done.expand(len(flat))
    shares = FIRST_MOVED_SHARE * (LAST_MOVED_SHARE / FIRST_MOVED_SHARE) ** done
    counts = (shares * flat.shape[1]).round().clamp_min(1)  # [item] coordinates that move
    most = int(counts.max())
    steepest = flat.abs().topk(most, dim=1).indices
    moving = torch.arange(most, device=flat.device) < counts[:, None]
    signs = torch.zeros_like(flat).scatter(1, steepest, flat.gather(1, steepest).sign() * moving)
    length = length * FIRST_STEP_FACTOR ** (1 - done) / counts
    step: Tensor = signs.reshape(points.shape) * per_item(length.to(points), points)
    return step
