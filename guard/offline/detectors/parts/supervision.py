"""What a detector that learns from attacked items is told of each example: its kind, and how much it weighs.

Rule 1: kinds are told apart, not only attacked from clean. A network then learns one likelihood ratio an attack, and
"attacked" is their sum; told the sum alone, one of the same size blurs them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

NOISE_SHARE = 0.25  # of the negatives' weight


def item_weights(clean: int, noisy: int, attacks: tuple[str, ...]) -> Tensor:
    """Weights of so many clean and noisy and then the attacked items, mean one.

    Attacks weigh as much as all negatives, each attack as much as the next; noise a quarter of the negatives.
    """
    share = NOISE_SHARE if noisy else 0.0
    counts = {attack: attacks.count(attack) for attack in attacks}
    attacked = torch.tensor([1.0 / (len(counts) * counts[attack]) for attack in attacks])
    weights = torch.cat(
        [torch.full((clean,), (1 - share) / clean), torch.full((noisy,), share / max(noisy, 1)), attacked]
    )
    return weights / weights.mean()


def item_kinds(negatives: int, attacks: tuple[str, ...]) -> Tensor:
    """Kinds [item] of so many clean and noisy items, 0, and then of the attacked ones: from 1, one a name."""
    place = {attack: 1 + index for index, attack in enumerate(sorted(set(attacks)))}
    return torch.tensor([0] * negatives + [place[attack] for attack in attacks])


def kind_loss(answers: Tensor, kinds: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the answers [item, kind]."""
    return (cross_entropy(answers, kinds, reduction="none") * weights).mean()


def odds_of_attack(answers: Tensor) -> Tensor:
    """Answers [item, kind] -> log-odds [item] that it is of any kind but the first."""
    return answers[:, 1:].logsumexp(dim=1) - answers[:, 0]
