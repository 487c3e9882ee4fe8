"""How much each example weighs where a detector learns from attacked items."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_SHARE = 0.25  # of the negatives' weight


def item_weights(clean: int, noisy: int, families: tuple[str, ...]) -> Tensor:
    """Weights of so many clean and noisy and then the attacked items, mean one.

    Attacks weigh as much as all negatives, each family as much as the next; noise a quarter of the negatives.
    """
    share = NOISE_SHARE if noisy else 0.0
    counts = {family: families.count(family) for family in families}
    attacked = torch.tensor([1.0 / (len(counts) * counts[family]) for family in families])
    weights = torch.cat(
        [torch.full((clean,), (1 - share) / clean), torch.full((noisy,), share / max(noisy, 1)), attacked]
    )
    return weights / weights.mean()
