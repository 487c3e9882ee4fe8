"""LEMNA turned into an attack: a mixture of linear surrogates with a fused lasso, fitted on answers alone."""

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


def mixture_slope(
    moves: Tensor, answers: Tensor, blocks: Blocks, *, components: int, iterations: int, penalty: float
) -> Tensor:
    """Return the coefficients [item, block] of the component that the point itself most likely belongs to.

    Expectation and maximisation, from parts of equal numbers of samples, ordered by what one regression misses them by:
    ordered by the answers themselves, each part would see too narrow a range of them, and too gentle a slope.
    """
    items, samples, count = moves.shape
    known = torch.cat([moves, torch.ones_like(moves[:, :, :1])], dim=2)  # the last coefficient is the intercept
    kinks = torch.nn.functional.pad(blocks.edges(moves), (0, 1))
    single = lasso(known, answers, torch.ones_like(answers), kinks, penalty)[0]
    missed = answers - (known @ single[:, :, None])[:, :, 0]
    place = missed.argsort(dim=1).argsort(dim=1) * components // samples
    member = torch.nn.functional.one_hot(place, components).to(moves.dtype).mT  # [item, component, sample]
    member = (member + 1 / components) / 2
    each = known.repeat_interleave(components, dim=0)
    wanted = answers.repeat_interleave(components, dim=0)
    for _ in range(iterations):
        found = lasso(each, wanted, member.flatten(0, 1), kinks, penalty)[0]
        missed = (wanted - (each @ found[:, :, None])[:, :, 0]).unflatten(0, (items, components))
        share = member.mean(dim=2, keepdim=True).clamp_min(1e-6)
        variance = (member * missed.square()).mean(dim=2, keepdim=True) / share
        variance = variance.clamp_min(1e-4 * answers.square().mean(dim=1)[:, None, None] + 1e-12)
        member = torch.softmax(likelihood(missed, share, variance), dim=1)
    coefficients = found.unflatten(0, (items, components))
    own = likelihood(-coefficients[:, :, -1:], share, variance)[:, :, 0].argmax(dim=1)  # where nothing has moved
    slope: Tensor = coefficients[torch.arange(items, device=moves.device), own, :count]
    return slope


def likelihood(missed: Tensor, share: Tensor, variance: Tensor) -> Tensor:
    """Return the log-likelihood, up to a constant, that each component made an answer that it missed by so much."""
    return share.log() - variance.log() / 2 - missed.square() / (2 * variance)


def lemna_surrogate(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float,
    generator: torch.Generator,
    norm: Norm = "linf",
    queries: int = 1000,
    rounds: int = 5,
    block: int | None = None,
    spread: float = 0.5,
    components: int = 2,
    iterations: int = 4,
    penalty: float = 0.002,
    targets: Tensor | None = None,
) -> Tensor:
    """Climb the surrogate's nearest component, and fit it anew where that leads; at most `queries` forwards an item.

    An image is moved in squares of `block` values a side (an eighth of it unless given), a vector by its values.
    `penalty` is on differences between neighbours, as a share of the answers' highest correlation with a move.

    Source: Guo et al. 2018, "LEMNA: Explaining Deep Learning based Security Applications", CCS, eq. 3 to 6; as an
    attack: Liu et al. 2021, arXiv:2004.11488. Their fused lasso runs along a sequence, ours between an image's
    neighbouring blocks too; they bound the differences' sum, we charge for it.
    """
    return surrogate(
        model,
        inputs,
        labels,
        fit=partial(mixture_slope, components=components, iterations=iterations, penalty=penalty),
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
class LemnaSurrogate:
    """LEMNA surrogate attack as a value, untargeted."""

    name: ClassVar[str] = "lemna_surrogate"
    family: ClassVar[Family] = Family.QUERY
    traits: ClassVar[Traits] = Traits(asks="answers", draws_for_batch=True)

    budget: float
    norm: Norm = "linf"
    queries: int = 1000
    rounds: int = 5
    block: int | None = None
    spread: float = 0.5
    components: int = 2
    iterations: int = 4
    penalty: float = 0.002

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "spread", "penalty")
        whole(self, "queries", "rounds", "components", "iterations")
        if self.block is not None:
            whole(self, "block")
        known_norm(self)
        enough_queries(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return lemna_surrogate(
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
            components=self.components,
            iterations=self.iterations,
            penalty=self.penalty,
        )

    def __repr__(self) -> str:
        return call_text(self)
