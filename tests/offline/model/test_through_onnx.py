"""Models of torch whose operators have no adjoint open all the same, with torch's gradient, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.graph.cut import after, before
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.several_outputs import single_path
from guard.offline.model.through_onnx import in_known_operators
from guard.value_box import ValueBox

SHAPE = (3, 8, 8)
PLACES = torch.arange(64).reshape(8, 8) % 3 == 0
Function = Callable[[Tensor], Tensor]


class Middle(nn.Module):
    """A convolution, a function of its own, and a linear layer."""

    def __init__(self, function: Function, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.last = nn.Conv2d(3, 6, 3, 1, 1), function, nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(images)).flatten(1))
        return logits


def shifted_in_time(x: Tensor) -> Tensor:
    """Temporal shift, as its authors write it: parts of the channels move by one place."""
    out = torch.zeros_like(x)
    out[:, :2, :, :-1] = x[:, :2, :, 1:]
    out[:, 2:4, :, 1:] = x[:, 2:4, :, :-1]
    out[:, 4:] = x[:, 4:]
    return out


def many_others(x: Tensor) -> Tensor:
    x = functional.mish(x.roll((1, -2), (2, 3))) + torch.maximum(x, -0.5 * x).flip(3)
    x = torch.stack([x, x.square()], 2).flatten(1, 2) * torch.var(x, 1, keepdim=True)
    return torch.einsum("bchw,bdhw->bcd", x, torch.log1p(x.abs()))


def sizes_and_masks(x: Tensor) -> Tensor:
    mask = torch.zeros(8, 8)
    mask[:4, :4] = 1
    mask[4:] += 0.5
    return x.masked_fill(PLACES, 0.2) * mask + functional.normalize(x, dim=1)[:, torch.tensor([3, 0, 1, 5, 4, 2])]


def powers_and_sums(x: Tensor) -> Tensor:
    powers = torch.tensor([0.5, 1, 2, 3, 1, 2]).view(6, 1, 1)
    x = torch.exp2(x) + torch.pow(x.abs() + 0.1, powers) + x.cumsum(1)
    return torch.logsumexp(x, 1) + (1 + 0.1 * x).prod(1) + x[:, 0].tril() + x[:, 1].triu(1)


MODELS: dict[str, tuple[Function, int]] = {
    "parts written in place": (shifted_in_time, 6 * 64),
    "operators that only ONNX's table has": (many_others, 12 * 12),
    "powers, sums and triangles": (powers_and_sums, 64),
    "a mask filled in place, an index, a norm": (sizes_and_masks, 6 * 64),
}


def test_a_model_with_parts_written_in_place_can_be_cut_at_each_tap(tmp_path: Path) -> None:
    """Zeros for as many items as there are lie before the cut as well as what is written into them."""
    exported(*MODELS["parts written in place"], tmp_path / "model.pt2")
    opened = open_model(Source(str(tmp_path / "model.pt2"), SHAPE))
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    for tap in opened.taps:
        layer = before(opened.graph, tap.node)(images)
        assert torch.allclose(after(opened.graph, tap.node, {})(layer, images), opened.graph(images), atol=1e-5)


def test_the_diagonal_of_what_is_fixed_is_fixed(tmp_path: Path) -> None:
    weights = torch.arange(36.0).reshape(6, 6)
    network = exported(lambda x: x * weights.diagonal()[:, None, None], 6 * 64, tmp_path / "model.pt2")
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    graph = open_model(Source(str(tmp_path / "model.pt2"), SHAPE)).graph
    assert torch.allclose(graph(images), network(images), atol=1e-5)


def exported(function: Function, width: int, file: Path) -> nn.Module:
    network = Middle(function, width).eval()
    program = torch.export.export(network, (torch.rand(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("item")},))
    torch.export.save(program, file)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_it_opens_with_torchs_gradient(name: str, tmp_path: Path) -> None:
    network = exported(*MODELS[name], tmp_path / "model.pt2")
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    opened = open_model(Source(str(tmp_path / "model.pt2"), SHAPE))
    logits, gradient = with_gradient(opened.graph, seed=top_class)(images)
    moving = images.clone().requires_grad_()
    expected = network(moving)
    (wanted,) = torch.autograd.grad(expected.max(1).values.sum(), moving)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_a_model_whose_operators_are_known_stays_as_it_is(tmp_path: Path) -> None:
    exported(torch.relu, 6 * 64, tmp_path / "model.pt2")
    graph = single_path(torch.export.load(tmp_path / "model.pt2"))
    assert in_known_operators(graph, ValueBox((0.0,), (1.0,), 3)) is graph


def test_what_onnx_does_not_have_either_is_named(tmp_path: Path) -> None:
    exported(torch.special.bessel_j0, 6 * 64, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=r"special_bessel_j0.* has no adjoint; written as ONNX the model is refused"):
        open_model(Source(str(tmp_path / "model.pt2"), SHAPE))


def spectrum(x: Tensor) -> Tensor:
    return torch.fft.rfft2(x).abs()


def sorted_channels(x: Tensor) -> Tensor:
    return x.sort(1).values


@pytest.mark.parametrize(("function", "width", "named"), [(spectrum, 6 * 40, "fft"), (sorted_channels, 384, "TopK")])
def test_a_refusal_names_the_operator_and_does_not_send_back_to_the_same_file(
    function: Function, width: int, named: str, tmp_path: Path
) -> None:
    exported(function, width, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=named) as caught:
        open_model(Source(str(tmp_path / "model.pt2"), SHAPE))
    assert "that the file came from" not in str(caught.value)
