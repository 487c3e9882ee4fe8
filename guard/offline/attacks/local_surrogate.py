"""Local surrogates: ask the model around a point, fit, step along the fitted slope, ask again.

Rule 1: the model is asked `queries` times an item at most, and for its answers alone: no gradient, no inside.
`lime_surrogate.py` and `lemna_surrogate.py` differ in what they fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, steepest
from guard.offline.attacks.objective import gap, log_odds
from guard.offline.data.norms import Norm

# Moves [item, sample, block] in units of the spread, the answers' changes [item, sample], the blocks
# -> slopes [item, block].
Fit: TypeAlias = Callable[[Tensor, Tensor, "Blocks"], Tensor]

SIDE_BLOCKS = 8  # blocks along a side of an image, unless the block's size is given
ASKED_ROWS = 64  # inputs asked at once
ADMM_STEPS = 30  # of ADMM in a fit
RIDGE_SHARE = 1e-3  # of the mean square of a move: keeps a fit on fewer samples than blocks solvable


@dataclass(frozen=True)
class Blocks:
    """Coarse view of an item: squares of an image's channels, stretches of a series', single values of a vector."""

    shape: tuple[int, ...]  # of an item
    size: int  # along a side

    @staticmethod
    def of(shape: tuple[int, ...], size: int | None) -> Blocks:
        return Blocks(shape, size or max(1, max(shape[1:], default=1) // SIDE_BLOCKS))

    @property
    def places(self) -> tuple[int, ...]:
        """Sizes of the axes of space or time, along which values share a block; none of a vector."""
        return self.shape[1:]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return (self.shape[0], *(-(-size // self.size) for size in self.places))

    @property
    def count(self) -> int:
        return math.prod(self.grid)

    def spread(self, values: Tensor) -> Tensor:
        """Map values [..., block] to [..., *shape], each over its whole block."""
        found = values.reshape(*values.shape[:-1], *self.grid)
        for axis, size in zip(range(-len(self.places), 0), self.places, strict=True):
            found = found.repeat_interleave(self.size, dim=axis).narrow(axis, 0, size)
        return found

    def edges(self, like: Tensor) -> Tensor:
        """Return the differences between neighbouring blocks, as a matrix [edge, block]."""
        number = torch.arange(self.count, device=like.device).reshape(self.grid)
        pairs = [
            (number.narrow(axis, 0, size - 1).flatten(), number.narrow(axis, 1, size - 1).flatten())
            for axis, size in enumerate(self.grid)
            if axis > 0 or not self.places  # channels are no neighbours; features are taken for such
        ]
        before, after = (torch.cat(side) for side in zip(*pairs, strict=True))
        unit = torch.eye(self.count, dtype=like.dtype, device=like.device)
        return unit[after] - unit[before]


def surrogate(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    fit: Fit,
    budget: float,
    norm: Norm,
    queries: int,
    rounds: int,
    generator: torch.Generator,
    block: int | None = None,
    spread: float = 0.5,
    targets: Tensor | None = None,
) -> Tensor:
    """Return each item's first fooling point, or the last one reached.

    A round asks about the point reached, and about moves of all its blocks up or down at random by `spread` * the
    budget's share of a value; then it steps. The last question is about the last point, and all add up to `queries`.
    """
    blocks = Blocks.of(tuple(inputs.shape[1:]), block)
    reach = spread * (budget if norm == "linf" else budget / math.sqrt(inputs[0].numel()))
    points, active = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
    for asked in [*parts(queries - 1, rounds), 1]:
        aims = None if targets is None else targets[active]
        moves = signs((len(active), asked, blocks.count), inputs, generator)
        moves[:, 0] = 0  # the point itself
        answers = ask(model, points[active], reach * moves, blocks)
        known = labels[active]
        left = gap(answers[:, 0], known, aims) <= 0
        active = active[left]
        if len(active) == 0 or asked == 1:
            break
        odds = per_sample(answers[left], known[left], None if aims is None else aims[left])
        slope = fit(moves[left][:, 1:], odds[:, 1:] - odds[:, :1], blocks)
        step = 2.5 * budget / rounds * steepest(blocks.spread(slope), norm)
        points[active] = into_reach(points[active] + step, inputs[active], budget, norm)
    return points


def enough_queries(attack: Any) -> None:
    """Check that every round has a question beside the one about its own point. Raises ConfigError."""
    if attack.queries < 2 * attack.rounds + 1:
        raise ConfigError(
            f"attack {attack.name!r}: queries = {attack.queries}; wanted at least {2 * attack.rounds + 1}, "
            f"two for each of {attack.rounds} rounds and one at the end"
        )


def parts(total: int, rounds: int) -> list[int]:
    """Divide `total` questions over the rounds, as evenly as whole numbers go."""
    ends = [total * number // rounds for number in range(rounds + 1)]
    return [after - before for before, after in pairwise(ends)]


def signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    coins = torch.rand(shape, generator=generator, device=generator.device) < 0.5
    return torch.where(coins, -1.0, 1.0).to(device=like.device, dtype=like.dtype)


def ask(model: Model, points: Tensor, moves: Tensor, blocks: Blocks) -> Tensor:
    """Ask for answers [item, sample, class] at points [item, ...] with their blocks moved by [item, sample, block]."""
    items, samples = moves.shape[:2]
    owner = torch.arange(items, device=points.device).repeat_interleave(samples)
    rows = zip(owner.split(ASKED_ROWS), moves.flatten(0, 1).split(ASKED_ROWS), strict=True)
    with torch.no_grad():
        answers = [model((points[item] + blocks.spread(move)).clamp(0, 1)) for item, move in rows]
    return torch.cat(answers).reshape(items, samples, -1)


def per_sample(answers: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Return log-odds [item, sample] of answers [item, sample, class]; logarithms of probabilities give the same."""
    samples = answers.shape[1]
    aims = None if targets is None else targets.repeat_interleave(samples)
    return log_odds(answers.flatten(0, 1), labels.repeat_interleave(samples), aims).reshape(-1, samples)


def lasso(moves: Tensor, answers: Tensor, weights: Tensor, kinks: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit least squares with sparse kinks; return coefficients [item, block] and kinks @ coefficients.

    Minimises sum of weights * (answers - moves @ c)^2 / 2 + penalty * largest * |kinks @ c|_1, where `largest` is the
    answers' highest correlation with a move: with the identity for kinks, 1 leaves nothing. The second is exactly zero
    where the penalty won. By ADMM (Boyd et al. 2011, section 6.4.1), a fixed number of passes.
    """
    weighted = moves * weights[:, :, None]
    gram, pull = weighted.mT @ moves, (weighted.mT @ answers[:, :, None])[:, :, 0]
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-12)[:, None]
    pull, strength = pull / scale, penalty * pull.abs().amax(dim=1, keepdim=True) / scale
    unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(gram / scale[:, :, None] + kinks.mT @ kinks + RIDGE_SHARE * unit)
    )
    sparse = torch.zeros(len(moves), len(kinks), dtype=gram.dtype, device=gram.device)
    owed = torch.zeros_like(sparse)
    for _ in range(ADMM_STEPS):
        found = (inverse @ (pull + (sparse - owed) @ kinks)[:, :, None])[:, :, 0]
        wanted = found @ kinks.mT + owed
        sparse = wanted.sign() * (wanted.abs() - strength).clamp_min(0)
        owed = wanted - sparse
    return found, sparse
