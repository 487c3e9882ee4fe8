"""Check of a robust verifier: whether many steps find much that one step did not.

Rule 1: a network that learned to hide its gradient from one step is refused (catastrophic overfitting): it would look
robust where it is not.
Rule 2: an epoch begins to hide where many steps find much more than one, and more than they found before it.

Source: Wong et al. 2020, arXiv:2001.03994, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from guard.errors import ModelError
from guard.offline.networks.one_vs_rest import many_steps, one_step, stepped

MAX_GAP_SHARE = 0.15  # of the items: by how much more may hold against one step than against many
MIN_HELD_SHARE = 1 / 3  # of those that hold against one step, that many leave of a network that does not hide
MIN_KEPT_SHARE = 0.75  # of those that held against many steps after the best epoch so far, that another one leaves
BATCH_ITEMS = 100

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Held:
    """Shares of the items of which no wrong class's logit rises above zero under perturbations within a budget."""

    items: int
    budget: float
    one_step: float
    many_steps: float
    steps: int

    @property
    def many_find_more(self) -> bool:
        """Whether many steps find much more than one; the interval counts, so that one item of few says nothing."""
        lost = binomtest(round(self.items * (self.one_step - self.many_steps)), self.items)
        return float(lost.proportion_ci(confidence_level=0.95, method="wilson").low) > MAX_GAP_SHARE

    @property
    def diverges(self) -> bool:
        """Whether many steps find so much more, beside what one step left, too, that the gradient is hidden."""
        return self.many_find_more and self.many_steps < MIN_HELD_SHARE * self.one_step

    def begins_to_hide(self, best: float) -> bool:
        """Whether an epoch ended so; `best` is the largest share that held against many steps after one before."""
        return self.diverges or (self.many_find_more and self.many_steps < MIN_KEPT_SHARE * best)

    def __str__(self) -> str:
        return (
            f"within {255 * self.budget:.3g}/255 no wrong class rises on {self.one_step:.0%} of {self.items} items "
            f"by one step, on {self.many_steps:.0%} by {self.steps}"
        )


def check_verifier(network: Network, items: Tensor, labels: Tensor, budget: float, steps: int, seed: int) -> Held:
    """Attack a verifier in one step and in many. Raises ModelError where the two differ by too much."""
    found = attack_verifier(network, items, labels, budget, steps, seed)
    if found.diverges:
        raise ModelError(
            f"the second network learned to hide from one step and not to withstand many: {found}; wanted at "
            f"least {MIN_HELD_SHARE:.0%} of them: lower budget in the recipe's [second] block, or take kind = "
            '"augmented"'
        )
    return found


def attack_verifier(network: Network, items: Tensor, labels: Tensor, budget: float, steps: int, seed: int) -> Held:
    """Count the items of which no wrong class rises by one step, from the item or a random start, and by many."""
    generator = torch.Generator().manual_seed(seed)
    held = [0, 0]
    for some, own in zip(items.split(BATCH_ITEMS), labels.split(BATCH_ITEMS), strict=True):
        straight = stepped(network, some, own, budget, torch.zeros_like(some), budget)
        once = torch.cat([straight, one_step(network, some, own, budget, generator)])
        often = many_steps(network, some, own, budget, steps, generator)
        for place, attacked in enumerate((once, torch.cat([often, once]))):
            stands = holding(network, attacked, own.repeat(len(attacked) // len(own)))
            held[place] += int(stands.unflatten(0, (-1, len(own))).all(dim=0).sum())
    return Held(len(items), budget, held[0] / len(items), held[1] / len(items), steps)


def holding(network: Network, items: Tensor, labels: Tensor) -> Tensor:
    """Return whether no wrong class's logit of an item is above zero [item]."""
    with torch.no_grad():
        logits = network(items)
    wrong = logits.masked_fill(torch.nn.functional.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return wrong.amax(dim=1) <= 0
