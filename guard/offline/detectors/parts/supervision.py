"""Supervision of detectors that learn from attacked items: each example's kind, and how much it weighs.

Rule 1: kinds are told apart, not only attacked from clean. A network then learns one likelihood ratio an attack, and
"attacked" is their sum; trained on the sum alone, a network of the same size blurs them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from guard.offline.data.attacked import Attacked

NOISE_WEIGHT_SHARE = 0.5  # of the negatives' total weight: noise differs in kind and size, clean items in neither


def item_weights(clean: int, noisy: int, attacked: Attacked[Any]) -> Tensor:
    """Return weights with mean one, of so many clean, then noisy, then the attacked items.

    Attacks weigh as much as all negatives, each attack as much as the next; noise half of the negatives.
    """
    share = NOISE_WEIGHT_SHARE if noisy else 0.0
    counts = Counter(attacked.by)
    positive = torch.tensor([1.0 / (len(counts) * counts[attack]) for attack in attacked.by])
    weights = torch.cat(
        [torch.full((clean,), (1 - share) / clean), torch.full((noisy,), share / max(noisy, 1)), positive]
    )
    return weights / weights.mean()


def item_kinds(negatives: int, attacked: Attacked[Any]) -> Tensor:
    """Return kinds [item]: 0 for each of the clean and noisy items, then 1, 2, ... by the attack's name."""
    place = {attack: 1 + index for index, attack in enumerate(sorted(set(attacked.by)))}
    return torch.tensor([0] * negatives + [place[attack] for attack in attacked.by])


def kind_loss(answers: Tensor, kinds: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of the answers [item, kind]."""
    return (cross_entropy(answers, kinds, reduction="none") * weights).mean()


def odds_of_attack(answers: Tensor) -> Tensor:
    """Return the log-odds [item] of any kind but the first, from answers [item, kind]."""
    return answers[:, 1:].logsumexp(dim=1) - answers[:, 0]
