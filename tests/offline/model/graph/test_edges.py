"""Functions that are infinitely steep at an edge keep their values there, and send back 0 in place of infinity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, fx, nn

from guard.offline.model.gradient.input_gradient import with_gradient
from guard.offline.model.gradient.rules.arithmetic import quotient_off_zero, share
from guard.offline.model.graph.canonical import plain
from tests.networks import graph_of

Function = Callable[[Tensor], Tensor]
ITEMS = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])

# name -> (function, where of ITEMS its slope is infinite)
AT_EDGES: Mapping[str, tuple[Function, Function]] = {
    "root": (lambda x: x.abs().sqrt(), lambda x: x == 0),
    "power of a half": (lambda x: x.relu() ** 0.5, lambda x: x <= 0),
    "power of 0.7": (lambda x: x.relu() ** 0.7, lambda x: x <= 0),
    "arc sine": (torch.asin, lambda x: x.abs() == 1),
    "arc cosine": (torch.acos, lambda x: x.abs() == 1),
    "area cosine": (lambda x: (1 + x.relu()).acosh(), lambda x: x <= 0),
}
NOWHERE: Mapping[str, Function] = {
    "root of a sum with a number": lambda x: (x.relu() + 1e-6).sqrt(),
    "root of a sum with fixed numbers": lambda x: (x.relu() + torch.full((6,), 1e-6)).sqrt(),
    "root of what has a lower limit": lambda x: x.clamp_min(1e-6).sqrt(),
    "square": lambda x: x**2,
    "power of 1.5": lambda x: x.relu() ** 1.5,
}


class Alone(nn.Module):
    """One function as a model."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, items: Tensor) -> Tensor:
        return self.function(items)


def graph_for(function: Function) -> fx.GraphModule:
    return graph_of(Alone(function), ITEMS)


def gradient_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    moving = ITEMS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(moving).sum(), moving)
    return gradient


@pytest.mark.parametrize("name", AT_EDGES)
def test_the_slope_at_an_edge_is_zero_and_torchs_elsewhere(name: str) -> None:
    function, at_edge = AT_EDGES[name]
    canonical = plain(graph_for(function))
    answers, own = with_gradient(graph_for(function), seed=torch.ones_like)(ITEMS)
    assert torch.equal(answers, function(ITEMS))
    wanted = torch.where(at_edge(ITEMS), 0.0, gradient_of(function))
    assert torch.allclose(own, wanted)
    assert torch.allclose(gradient_of(canonical), wanted), "torch's own gradient, which attacks climb, is the same"


@pytest.mark.parametrize("name", AT_EDGES)
def test_it_is_written_so_once(name: str) -> None:
    once = plain(graph_for(AT_EDGES[name][0]))
    assert [node.target for node in plain(once).graph.nodes] == [node.target for node in once.graph.nodes]


@pytest.mark.parametrize("name", NOWHERE)
def test_what_is_kept_off_an_edge_stays_as_it_is(name: str) -> None:
    canonical = plain(graph_for(NOWHERE[name]))
    assert not canonical.graph.find_nodes(op="call_function", target=torch.ops.aten.where.ScalarSelf)
    assert torch.equal(canonical(ITEMS), NOWHERE[name](ITEMS))


def test_a_power_of_zero_is_one_and_nothing_moves_it() -> None:
    answers, own = with_gradient(graph_for(lambda x: x + x**0), seed=torch.ones_like)(ITEMS)
    assert torch.equal(answers, ITEMS + 1)
    assert torch.equal(own, torch.ones_like(ITEMS))


def test_numbers_that_are_none_stay_none() -> None:
    beyond = torch.tensor([[-2.0, float("nan"), 2.0, 0.0, 0.0, 0.0]])
    for function, _ in AT_EDGES.values():
        assert torch.equal(plain(graph_for(function))(beyond).isnan(), function(beyond).isnan())


# What is infinite itself at 0, where the model throws it away: torch's ReLU drops the slope, which is no number.
THROWN_AWAY: Mapping[str, Function] = {
    "logarithm": torch.log,
    "reciprocal": lambda x: x**-1.0,
    "reciprocal root": torch.rsqrt,
    "division by it": lambda x: 2.0 * x / x,
    "division of another": lambda x: (1 + x).sigmoid() / x,
    "division by a sum": lambda x: x / x.sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", THROWN_AWAY)
def test_what_is_thrown_away_at_zero_sends_back_nothing(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        positive = x.relu()
        return torch.where(positive > 0, THROWN_AWAY[name](positive), positive) * torch.arange(1.0, 7.0)

    answers, own = with_gradient(graph_for(function), seed=torch.ones_like)(ITEMS)
    wanted = gradient_of(function)
    assert wanted.isfinite().all()
    assert torch.equal(answers, function(ITEMS))
    assert torch.allclose(own, wanted)


def test_a_division_by_what_is_kept_off_zero_asks_for_no_zeros() -> None:
    graph = with_gradient(
        graph_for(lambda x: x / (x.abs() + 1e-6).sqrt().unsqueeze(1).squeeze(1)), seed=torch.ones_like
    )
    assert not [node for node in graph.graph.nodes if node.target in (share, quotient_off_zero)]
