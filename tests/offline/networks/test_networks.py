"""Small networks that attacks train for themselves: drawn, trained and kept without any global randomness."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from guard.offline.closed.student import body_of
from guard.offline.networks.architectures import autoencoder, feature_network, small_classifier, wide_perceptron
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import drawn, empty, knowledge_of, recalled

IMAGE, SERIES, VECTOR = (3, 9, 7), (2, 24), (11,)
every_network = pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(partial(build, shape, *rest), shape, id=f"{build.__name__}-{what}")
        for build, rest, kinds in (
            (small_classifier, (5,), ("image", "series", "vector")),
            (autoencoder, (), ("image", "series", "vector")),
            (feature_network, (1, 4), ("image", "series", "vector")),
            (wide_perceptron, (5,), ("vector",)),
            (body_of, (5,), ("image", "vector")),
        )
        for what, shape in {"image": IMAGE, "series": SERIES, "vector": VECTOR}.items()
        if what in kinds
    ],
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
def test_every_weight_is_drawn_and_bounded_by_its_inputs(build, shape):
    """Memory that nothing wrote is filled first, so that it cannot look like weights by chance."""
    spoilt = [torch.full((60_000,), float("nan")) for _ in range(4)]
    del spoilt
    drawn_now = drawn(build, seeded(), torch.zeros(1, *shape))
    for name, value in drawn_now.state_dict().items():
        assert bool(value.isfinite().all()), name
        bound = (6 / value[0].numel()) ** 0.5 if name.endswith("weight") else 0.0
        assert float(value.abs().max()) <= bound, name
        assert name.endswith("bias") or float(value.abs().max()) > 0.5 * bound, name
    assert bool(drawn_now(torch.rand(4, *shape, generator=seeded())).isfinite().all())


def test_a_layer_that_nothing_fills_is_refused():
    with pytest.raises(TypeError, match="weights of BatchNorm1d are not drawn"):
        drawn(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), seeded(), torch.zeros(1, 3))


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
