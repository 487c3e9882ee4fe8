"""LIME turned into an attack: a sparse linear surrogate of the model around an item, fitted on answers alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.local_surrogate import Blocks, enough_queries, lasso, surrogate
from guard.offline.attacks.model import Model
from guard.offline.data.norms import Norm


def sparse_slope(moves: Tensor, answers: Tensor, blocks: Blocks, *, penalty: float) -> Tensor:
    """Return the lasso's coefficients [item, block], many of which are zero."""
    del blocks  # each stands alone
    unit = torch.eye(moves.shape[2], dtype=moves.dtype, device=moves.device)
    return lasso(moves, answers, torch.ones_like(answers), unit, penalty)[1]


def lime_surrogate(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    generator: torch.Generator,
    norm: Norm = "linf",
    queries: int = 1000,
    rounds: int = 10,
    block: int | None = None,
    spread: float = 0.5,
    penalty: float = 0.02,
    targets: Tensor | None = None,
) -> Tensor:
    """Climb the surrogate, and fit it anew where that leads, `rounds` times; at most `queries` forwards an item.

    An image is moved in squares of `block` values a side (an eighth of it unless given), a vector by its values.
    `penalty` is the lasso's, as a share of the one that leaves no block.

    Source: Ribeiro et al. 2016, arXiv:1602.04938, section 3.4; as an attack: Liu et al. 2021, arXiv:2004.11488. Their
    samples switch parts off and weigh near ones more; ours move all parts by one amount, so that all are as near.
    """
    return surrogate(
        model,
        inputs,
        labels,
        fit=partial(sparse_slope, penalty=penalty),
        budget=budget,
        norm=norm,
        queries=queries,
        rounds=rounds,
        generator=generator,
        block=block,
        spread=spread,
        targets=targets,
    )


@dataclass(frozen=True, repr=False)
class LimeSurrogate:
    """LIME surrogate attack as a value, untargeted."""

    name: ClassVar[str] = "lime_surrogate"
    family: ClassVar[Family] = Family.QUERY
    traits: ClassVar[Traits] = Traits(asks="answers", draws_for_batch=True)

    budget: float
    norm: Norm = "linf"
    queries: int = 1000
    rounds: int = 10
    block: int | None = None
    spread: float = 0.5
    penalty: float = 0.02

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "spread", "penalty")
        whole(self, "queries", "rounds")
        if self.block is not None:
            whole(self, "block")
        known_norm(self)
        enough_queries(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return lime_surrogate(
            model,
            inputs,
            labels,
            budget=self.budget,
            generator=generator,
            norm=self.norm,
            queries=self.queries,
            rounds=self.rounds,
            block=self.block,
            spread=self.spread,
            penalty=self.penalty,
        )

    def __repr__(self) -> str:
        return call_text(self)
