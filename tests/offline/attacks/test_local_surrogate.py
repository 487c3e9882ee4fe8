"""The laws of attacks through a local surrogate, LIME's and LEMNA's: answers alone, and no more than were allowed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.local_surrogate import Blocks, lasso, parts
from guard.offline.attacks.methods.lemna_surrogate import LemnaSurrogate, lemna_surrogate, mixture_slope
from guard.offline.attacks.methods.lime_surrogate import LimeSurrogate, lime_surrogate, sparse_slope
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import log_odds
from tests.offline.attacks.linear import linear, optimum
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.6  # of all items: by how much they beat random perturbations of the same size
QUERIES = 400

both = pytest.mark.parametrize("attack", [lime_surrogate, lemna_surrogate])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting:
    """Answers alone, without a gradient, and counts the rows asked for."""

    def __init__(self, answer: object) -> None:
        self.answer, self.rows = answer, 0

    def __call__(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.rows += len(images)
        assert ((images >= 0) & (images <= 1)).all()
        return self.answer(images).detach()


@both
@pytest.mark.parametrize(("norm", "budget"), [("linf", 0.15), ("l2", 1.0)])
def test_beats_noise_of_its_size_on_held_out_items(attack, norm, budget):
    digits = trained()
    attacked = attack(
        digits.model, digits.inputs, digits.labels, budget=budget, generator=seeded(), norm=norm, queries=QUERIES
    )
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN
    assert (sizes(attacked - digits.inputs, norm) <= budget + 1e-6).all()


@both
@pytest.mark.parametrize(("queries", "rounds"), [(21, 10), (100, 7), (101, 10)])
def test_an_item_that_resists_costs_exactly_its_queries_and_one_that_falls_fewer(attack, queries, rounds):
    digits = trained()
    asked = {}
    for budget in (0.001, 0.5):
        model = Counting(digits.model)
        attacked = attack(
            TorchModel(model),
            digits.inputs,
            digits.labels,
            budget=budget,
            generator=seeded(),
            queries=queries,
            rounds=rounds,
        )
        asked[budget] = (model.rows, fooled(digits.model, attacked, digits.labels))
    assert asked[0.001] == (queries * len(digits.inputs), 0.0)
    assert asked[0.5][1] > 0
    assert asked[0.5][0] < queries * len(digits.inputs)


@both
def test_its_objective_rises(attack):
    digits = trained()
    before = log_odds(digits.model(digits.inputs), digits.labels)
    attacked = attack(
        digits.model, digits.inputs, digits.labels, budget=0.03, generator=seeded(), queries=QUERIES, rounds=4
    )
    after = log_odds(digits.model(attacked), digits.labels)
    assert (after > before).float().mean() > 0.95


@both
def test_probabilities_serve_as_well_as_logits(attack):
    digits = trained()
    few = digits.inputs[:8].double(), digits.labels[:8]
    model = trained().model

    def doubled(x: Tensor) -> Tensor:
        return model(x.float()).double()

    told = [
        attack(TorchModel(answer), *few, budget=0.1, generator=seeded(), queries=100, rounds=4)
        for answer in (doubled, lambda x: doubled(x).log_softmax(dim=1))
    ]
    torch.testing.assert_close(*told, atol=1e-4, rtol=0)


@both
def test_targets_are_reached(attack):
    digits = trained()
    targets = (digits.labels + 1) % 10
    points = attack(
        digits.model, digits.inputs, digits.labels, budget=0.4, generator=seeded(), queries=QUERIES, targets=targets
    )
    assert (digits.model(points).argmax(dim=1) == targets).float().mean() > 0.6


@both
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_needs_little_over_the_optimum(attack, norm):
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, norm)
    points = attack(
        model, inputs, labels, budget=1.1 * nearest.max().item(), generator=seeded(), norm=norm, penalty=1e-4
    )
    assert fooled(model, points, labels) == 1.0
    assert (sizes(points - inputs, norm) <= 1.1 * nearest.max() + 1e-6).all()


def planted(slopes: Tensor, samples: int = 400) -> tuple[Tensor, Tensor]:
    moves = torch.where(torch.rand(3, samples, slopes.shape[1], generator=seeded(2)) < 0.5, -1.0, 1.0)
    return moves, (moves @ slopes[:, :, None])[:, :, 0]


def test_the_sparse_fit_finds_the_few_blocks_that_matter():
    slopes = torch.zeros(3, 20)
    slopes[:, 3], slopes[:, 11] = 2.0, -1.0
    moves, answers = planted(slopes)
    answers = answers + 0.1 * torch.randn(answers.shape, generator=seeded(3))
    found = sparse_slope(moves, answers, Blocks((20,), 1), penalty=0.1)
    assert ((found != 0) == (slopes != 0)).all()
    torch.testing.assert_close(found, slopes, atol=0.3, rtol=0)


def test_a_penalty_of_one_leaves_nothing():
    moves, answers = planted(torch.randn(3, 10, generator=seeded(4)))
    _, sparse = lasso(moves, answers, torch.ones_like(answers), torch.eye(10), 1.01)
    assert (sparse == 0).all()


def test_the_fused_fit_draws_neighbours_together():
    slopes = torch.cat([torch.full((3, 10), 1.0), torch.full((3, 10), -1.0)], dim=1)
    moves, answers = planted(slopes, samples=30)
    answers = answers + 1.0 * torch.randn(answers.shape, generator=seeded(5))
    fit = partial(mixture_slope, moves, answers, Blocks((20,), 1), components=1, iterations=1)
    loose, fused = ((fit(penalty=penalty) - slopes).square().mean() for penalty in (1e-6, 0.1))
    assert fused < loose / 2


def test_the_mixture_finds_the_slope_of_the_side_that_the_point_is_on():
    """Two half-spaces of very different slope: one line through both is neither."""
    moves, along = planted(torch.full((3, 8), 0.25))
    beyond = moves[:, :, 0] > 0
    answers = torch.where(beyond, 6.0 + 2 * moves[:, :, 1], along)
    mixed = mixture_slope(moves, answers, Blocks((8,), 1), components=2, iterations=10, penalty=1e-6)
    single = mixture_slope(moves, answers, Blocks((8,), 1), components=1, iterations=1, penalty=1e-6)
    wanted = torch.full((3, 7), 0.25)
    assert (mixed[:, 1:] - wanted).abs().max() < 0.1
    assert (single[:, 1:] - wanted).abs().max() > 0.5


@pytest.mark.parametrize("shape", [(9,), (3, 32, 32), (1, 28, 28), (2, 6, 6), (1, 7, 10)])
def test_blocks_cover_every_value_once(shape):
    blocks = Blocks.of(shape, None)
    covered = blocks.spread(torch.eye(blocks.count))
    assert covered.shape == (blocks.count, *shape)
    assert torch.equal(covered.sum(dim=0), torch.ones(shape))
    assert (blocks.edges(covered).sum(dim=1) == 0).all()


def test_queries_are_shared_out_whole():
    assert parts(20, 3) == [6, 7, 7]
    for kind in (LimeSurrogate, LemnaSurrogate):
        with pytest.raises(ConfigError, match="wanted at least 21"):
            kind(budget=0.1, queries=20, rounds=10)
