"""Small networks that attacks train for themselves: drawn, trained and kept without any global randomness."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from guard.offline.attacks.on_manifold import autoencoder
from guard.offline.attacks.student import drawn, empty, knowledge_of, recalled, train
from guard.offline.attacks.substitute import network

every_network = pytest.mark.parametrize(
    ("build", "shape"),
    [
        (partial(network, (3, 9, 7), 5), (3, 9, 7)),
        (partial(network, (11,), 5), (11,)),
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


def test_training_fits_and_is_repeatable_even_inside_no_grad():
    inputs = torch.rand(50, 6, generator=seeded())
    wanted = inputs @ torch.randn(6, 2, generator=seeded(1))

    def run() -> tuple[nn.Module, float]:
        learner = drawn(partial(nn.Linear, 6, 2), seeded(2), inputs)

        def loss(outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return (outputs - wanted[index]).square().mean()

        before = float(loss(learner(inputs), torch.arange(50)).detach())
        with torch.no_grad():
            train(learner, inputs, loss, epochs=60, generator=seeded(3), batch=10, rate=0.05)
        return learner, float(loss(learner(inputs), torch.arange(50)).detach()) / before

    (first, left), (again, _) = run(), run()
    assert left < 0.01
    assert torch.equal(first.weight, again.weight)


def test_an_empty_network_holds_no_values():
    assert all(parameter.is_meta for parameter in empty(partial(nn.Linear, 3, 2)).parameters())
