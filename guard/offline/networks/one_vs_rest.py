"""Losses that a second network learns by, and the attack of one step or few that a robust one learns against.

How it works. A second network is asked one thing: does it stand behind the label that another model names? So a robust
one needs not name the right class of a perturbed input; it must only never come to stand behind a wrong one. Each class
has a logit of its own against the rest. On clean inputs the true class's logit is pushed up and the others down, on
perturbed inputs the wrong classes' logits down; the true class's is left free.

Source: Yin et al. 2020, arXiv:1905.11475 (asymmetrical adversarial training: one detector a class), in one network.
Wong et al. 2020, arXiv:2001.03994 (one step from a random start, of 1.25 times the budget).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softplus

STEP_FACTOR = 1.25  # of the budget: the one step
CLEAN_OWN_FACTOR, CLEAN_OTHERS_FACTOR = 2.0, 0.5  # weights beside the perturbed inputs' own loss

Network = Callable[[Tensor], Tensor]


def natural_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [item, class] with labels [item]."""
    return cross_entropy(logits, labels)


def taught_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [item, class] with another model's answers [item, class]."""
    return cross_entropy(logits, answers.softmax(dim=1))


def verifier_loss(clean: Tensor, perturbed: Tensor, labels: Tensor) -> Tensor:
    """Return the mean one-vs-rest loss of logits [item, class] of clean and of perturbed items."""
    own = one_hot(labels, clean.shape[1]).to(clean.dtype)
    standing = CLEAN_OWN_FACTOR * softplus(-(clean * own).sum(dim=1))
    others = (1 - own) * (CLEAN_OTHERS_FACTOR * softplus(clean) + softplus(perturbed))
    return (standing + others.sum(dim=1)).mean()


def wrong_rise(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the smooth maximum of the wrong classes' logits, summed over items: what an attack on a verifier lifts."""
    wrong = logits.masked_fill(one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return wrong.logsumexp(dim=1).sum()


def one_step(network: Network, items: Tensor, labels: Tensor, budget: float, generator: torch.Generator) -> Tensor:
    """Perturb unit-space items [item, ...] within an L-infinity budget by one step from a random start."""
    return few_steps(network, items, labels, budget, 1, generator)


def few_steps(
    network: Network, items: Tensor, labels: Tensor, budget: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Perturb items as `one_step` does, in so many steps that share its length."""
    start = torch.rand(items.shape, generator=generator, device=generator.device).to(items.device)
    moved = (2 * start - 1) * budget
    for _ in range(steps):
        moved = stepped(network, items, labels, budget, moved, STEP_FACTOR * budget / steps) - items
    return items + moved


def stepped(network: Network, items: Tensor, labels: Tensor, budget: float, moved: Tensor, step: float) -> Tensor:
    """Return items moved by `moved` and one step along the sign of the gradient, within budget and unit box."""
    point = (items + moved).clamp(0, 1).detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(wrong_rise(network(point).float(), labels), point)
    away = (point.detach() + step * slope.sign() - items).clamp(-budget, budget)
    return (items + away).clamp(0, 1)


def many_steps(
    network: Network, items: Tensor, labels: Tensor, budget: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Perturb items as `one_step` does, in many steps of a tenth to a quarter of the budget."""
    start = torch.rand(items.shape, generator=generator, device=generator.device).to(items.device)
    found = (items + (2 * start - 1) * budget).clamp(0, 1)
    for _ in range(steps):
        found = stepped(network, items, labels, budget, found - items, max(2.5 / steps, 0.1) * budget)
    return found
