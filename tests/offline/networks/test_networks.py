"""Small networks that attacks train for themselves: drawn, trained and kept without any global randomness."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from guard.offline.networks.architectures import autoencoder, small_classifier
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import drawn, empty, knowledge_of, recalled

every_network = pytest.mark.parametrize(
    ("build", "shape"),
    [
        (partial(small_classifier, (3, 9, 7), 5), (3, 9, 7)),
        (partial(small_classifier, (11,), 5), (11,)),
        (partial(autoencoder, (3, 9, 7)), (3, 9, 7)),
        (partial(autoencoder, (11,)), (11,)),
    ],
    ids=["substitute-images", "substitute-vectors", "autoencoder-images", "autoencoder-vectors"],
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_network
def test_nothing_global_is_drawn_and_the_generator_decides(build, shape):
    like, state = torch.zeros(1, *shape), torch.get_rng_state()
    first, again, other = (knowledge_of(drawn(build, seeded(seed), like)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@every_network
def test_what_is_recalled_answers_as_what_was_kept(build, shape):
    inputs = torch.rand(4, *shape, generator=seeded())
    learned = drawn(build, seeded(), inputs)
    found = recalled(build, knowledge_of(learned), inputs)
    assert torch.equal(found(inputs), learned(inputs))
    assert recalled(build, knowledge_of(learned), inputs.double())(inputs.double()).dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("falls", ["each step", "each epoch"])
def test_training_fits_and_is_repeatable_even_inside_no_grad(falls):
    inputs = torch.rand(50, 6, generator=seeded())
    wanted = inputs @ torch.randn(6, 2, generator=seeded(1))

    def run() -> tuple[nn.Module, float]:
        learner = drawn(partial(nn.Linear, 6, 2), seeded(2), inputs)

        def loss(index: torch.Tensor) -> torch.Tensor:
            return (learner(inputs[index]) - wanted[index]).square().mean()

        before = float(loss(torch.arange(50)).detach())
        schedule = Schedule(60, batch_items=10, learning_rate=0.05, falls=falls)
        with torch.no_grad():
            train(learner, 50, loss, schedule, seeded(3))
        return learner, float(loss(torch.arange(50)).detach()) / before

    (first, left), (again, _) = run(), run()
    assert left < 0.01
    assert torch.equal(first.weight, again.weight)


def test_without_a_generator_the_global_one_orders_the_items():
    inputs = torch.rand(50, 6, generator=seeded())

    def run() -> torch.Tensor:
        learner = drawn(partial(nn.Linear, 6, 2), seeded(2), inputs)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            train(learner, 50, lambda index: learner(inputs[index]).square().mean(), Schedule(2, batch_items=10))
        return learner.weight.detach()

    assert torch.equal(run(), run())


def test_an_empty_network_holds_no_values():
    assert all(parameter.is_meta for parameter in empty(partial(nn.Linear, 3, 2)).parameters())
