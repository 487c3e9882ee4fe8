"""What a model changes in place shows under every name that the changed numbers have, or the model is not opened."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guard.errors import ModelError
from guard.offline.model.gradient.coverage import without_adjoint
from guard.offline.model.graph.canonical import plain
from guard.offline.model.open_model import Source, open_model
from tests.networks import graph_of

SHAPE = (3, 6, 6)
Function = Callable[[Tensor], Tensor]


class Middle(nn.Module):
    """A convolution, a function of its maps, and a linear layer."""

    def __init__(self, function: Function, maps: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.function, self.last = nn.Conv2d(3, 8, 3), function, nn.Linear(maps, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(images)).mean((2, 3)))
        return logits


def parts_of_a_chunk(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    left.mul_(3.0)
    right.relu_()
    return torch.cat([left, right], 1)


def read_as_a_whole(split: Callable[[Tensor], tuple[Tensor, ...]]) -> Function:
    def function(x: Tensor) -> Tensor:
        part, *_ = split(x)
        part.mul_(3.0)
        return x

    return function


def chunk_read_as_a_whole(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    left.mul_(3.0)
    right.relu_()
    return x


def whole_read_in_parts(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    x.mul_(2.0)
    return left * right


def part_of_a_part(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    left[:, :2].mul_(3.0)
    return torch.cat([left, right], 1)


def changed_twice(x: Tensor) -> Tensor:
    """A view taken between two changes of what has two names by then."""
    again = x.relu_()
    view = x[:, :4]
    again.add_(1.0)
    return torch.cat([view, x[:, 4:]], 1)


def same_by_dropout(x: Tensor) -> Tensor:
    functional.dropout(x, 0.5, training=False).mul_(2.0)
    return x


NATIVE: Mapping[str, tuple[Function, int]] = {"parts of a chunk": (parts_of_a_chunk, 8)}
THROUGH_ONNX: Mapping[str, tuple[Function, int]] = {
    "chunk, the whole read later": (chunk_read_as_a_whole, 8),
    "tensor_split, the whole read later": (read_as_a_whole(lambda x: torch.tensor_split(x, (2, 5), 1)), 8),
    "the whole, parts read later": (whole_read_in_parts, 4),
    "a part of a part": (part_of_a_part, 8),
}
REFUSED_BY_PLAIN: Mapping[str, Function] = {
    "chunk": chunk_read_as_a_whole,
    "split": read_as_a_whole(lambda x: torch.split(x, 4, 1)),
    "split_with_sizes": read_as_a_whole(lambda x: torch.split(x, [3, 5], 1)),
    "unbind": read_as_a_whole(lambda x: x.unbind(1)),
    "tensor_split": read_as_a_whole(lambda x: torch.tensor_split(x, 3, 1)),
    "unsafe_chunk": read_as_a_whole(lambda x: tuple(x.unsafe_chunk(2, 1))),
    "einsum": read_as_a_whole(lambda x: (torch.einsum("bchw->bhwc", x),)),
    "parts of a part": part_of_a_part,
    "the whole": whole_read_in_parts,
    "twice": changed_twice,
    "dropout": same_by_dropout,
}
MODELS = {**NATIVE, **THROUGH_ONNX}


def images() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_writes_in_place_opens_as_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights can be trained, so that torch itself refuses to differentiate some: they are traced as they answer."""
    network = Middle(*MODELS[name]).eval()
    monkeypatch.setattr(sys.modules[__name__], "factory", lambda: network)
    opened = open_model(Source(f"{__name__}:factory", SHAPE))
    with torch.no_grad():
        assert torch.allclose(opened.graph(images()), network(images()), atol=1e-5)


def factory() -> nn.Module:
    raise NotImplementedError


@pytest.mark.parametrize("name", REFUSED_BY_PLAIN)
def test_what_is_read_late_is_found(name: str) -> None:
    function = REFUSED_BY_PLAIN[name]
    graph = graph_of(Middle(function, 4 if name == "the whole" else 8).eval().requires_grad_(False), images())
    assert "changes in place what is read later (copy it first)" in without_adjoint(graph)[0]
    with pytest.raises(ModelError, match=r"in place, which .* reads; copy it first"):
        plain(graph)


def test_parts_of_a_split_do_not_touch_each_other() -> None:
    graph = graph_of(Middle(parts_of_a_chunk).eval().requires_grad_(False), images())
    assert without_adjoint(graph) == []
    assert torch.allclose(plain(graph)(images()), graph(images()))


def test_two_names_of_one_tensor_are_changed_together() -> None:
    """By hand, since torch.export gives a tensor one name at a time."""
    graph = graph_of(Middle(lambda x: x.relu_().mul_(3.0)).eval().requires_grad_(False), images())
    (conv,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)
    (mean,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.mean.dim)
    mean.args = (conv, *mean.args[1:])
    graph.recompile()
    assert torch.allclose(plain(graph)(images()), graph(images()))


def test_what_draws_random_numbers_in_place_is_refused() -> None:
    graph = graph_of(Middle(lambda x: (x * 1).normal_()).eval().requires_grad_(False), images())
    with pytest.raises(ModelError, match=r"normal_.*draw no random numbers"):
        plain(graph)
