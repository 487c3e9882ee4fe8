"""What a detector that learns from attacked items is told of each example: its kind, and how much it weighs.

Rule 1: kinds are told apart, not only attacked from clean. A network then learns one likelihood ratio an attack, and
"attacked" is their sum; told the sum alone, one of the same size blurs them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from guard.offline.data.attacked import Attacked

NOISE_SHARE = 0.25  # of the negatives' weight


def item_weights(clean: int, noisy: int, attacked: Attacked[Any]) -> Tensor:
    """Weights of so many clean and noisy and then the attacked items, mean one.

    Attacks weigh as much as all negatives, each attack as much as the next; noise a quarter of the negatives.
    """
    share = NOISE_SHARE if noisy else 0.0
    counts = Counter(attacked.by)
    positive = torch.tensor([1.0 / (len(counts) * counts[attack]) for attack in attacked.by])
    weights = torch.cat(
        [torch.full((clean,), (1 - share) / clean), torch.full((noisy,), share / max(noisy, 1)), positive]
    )
    return weights / weights.mean()


def item_kinds(negatives: int, attacked: Attacked[Any]) -> Tensor:
    """Kinds [item] of so many clean and noisy items, 0, and then of the attacked ones: from 1, one a name."""
    place = {attack: 1 + index for index, attack in enumerate(sorted(set(attacked.by)))}
    return torch.tensor([0] * negatives + [place[attack] for attack in attacked.by])


def kind_loss(answers: Tensor, kinds: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the answers [item, kind]."""
    return (cross_entropy(answers, kinds, reduction="none") * weights).mean()


def odds_of_attack(answers: Tensor) -> Tensor:
    """Answers [item, kind] -> log-odds [item] that it is of any kind but the first."""
    return answers[:, 1:].logsumexp(dim=1) - answers[:, 0]
