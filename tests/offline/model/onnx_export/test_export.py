"""What is lowered takes any number of items, keeps its names, and tells nothing of where it was made."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.gradient.rules.pointwise import above, below
from guard.offline.model.graph.batch_norm import fold_batch_norm
from guard.offline.model.onnx_export.export import lower
from tests.networks import graph_of, small_cnn


def run(model: onnx.ModelProto, inputs: Tensor) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [np.asarray(output) for output in session.run(None, {name: inputs.numpy()})]


def lowered(module: nn.Module, example: Tensor, outputs: Sequence[str] = ("output",)) -> onnx.ModelProto:
    return lower(module, example, input_name="image", output_names=outputs)


@pytest.fixture(scope="module")
def program() -> onnx.ModelProto:
    """The demo's kind of network with its gradient, lowered from one item."""
    example = torch.rand(1, 1, 8, 8)
    graph = with_gradient(fold_batch_norm(graph_of(small_cnn(), example)), seed=top_class)
    return lowered(graph, example, ("logits", "gradient"))


@pytest.mark.parametrize("items", [1, 2, 7])
def test_any_number_of_items(program: onnx.ModelProto, items: int) -> None:
    images = torch.rand(items, 1, 8, 8, generator=torch.Generator().manual_seed(items))
    logits, gradient = run(program, images)
    pixels = images.clone().requires_grad_(True)
    expected = small_cnn()(pixels)
    (slope,) = torch.autograd.grad(expected.max(1).values.sum(), pixels)
    torch.testing.assert_close(torch.from_numpy(logits), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(gradient), slope, rtol=1e-3, atol=1e-5)


def test_an_item_does_not_depend_on_its_mates(program: onnx.ModelProto) -> None:
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for together, alone in zip(run(program, images), run(program, images[4:5]), strict=True):
        np.testing.assert_allclose(together[4:5], alone, rtol=1e-5, atol=1e-6)


def test_names_and_free_axis(program: onnx.ModelProto) -> None:
    values = (*program.graph.input, *program.graph.output)
    assert [value.name for value in values] == ["image", "logits", "gradient"]
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in values] == ["batch"] * 3
    assert [(entry.domain, entry.version) for entry in program.opset_import] == [("", 20)]


def test_it_says_nothing_of_where_it_was_made(program: onnx.ModelProto) -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(program)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")  # numbers spell anything
    words = re.findall(rb"[\x20-\x7e]{6,}", bare.SerializeToString())  # whatever a person could read
    assert b"conv2d_folded_weight" in b" ".join(words)
    for trace in (b"/", b"\\", b"File ", b"site-packages", b".py", b"torch", b"stack_trace"):
        assert not [word for word in words if trace in word], trace


def test_no_comparison_leaves_the_blocked_layout(program: onnx.ModelProto) -> None:
    operators = [node.op_type for node in program.graph.node]
    assert operators.count("HardSigmoid") == 2
    assert not {"Greater", "Less", "ConvTranspose", "ScatterElements", "Dropout"}.intersection(operators)


def test_zeros_around_an_image_cost_the_way_back_nothing() -> None:
    """TensorFlow's "same" padding: nothing is computed there and cut off again, and whole cells need no cutting."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(),
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 16, 3, 2), nn.Flatten(), nn.Linear(16 * 9, 2),
    )  # fmt: skip
    example = torch.rand(2, 3, 8, 8)
    network.eval().requires_grad_(False)
    forward = lowered(graph_of(network, example), example)
    both = lowered(with_gradient(graph_of(network, example), seed=top_class), example, ("logits", "gradient"))
    for operator in ("Pad", "Slice"):
        there = [sum(node.op_type == operator for node in model.graph.node) for model in (forward, both)]
        assert there[0] == there[1]


class Comparisons(nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        return above(values, 0.0), below(values, 0.0), below(values, 6.0), above(values, -3.0), below(values, 1 / 3)


def test_comparisons_are_exact_to_the_last_bit() -> None:
    """Around every limit, at the smallest normal numbers, and where the product overflows."""
    limits = np.array([0.0, 6.0, -3.0, 1 / 3], np.float32)
    neighbours = [np.nextafter(limits, np.float32(-np.inf)), limits, np.nextafter(limits, np.float32(np.inf))]
    tiny, large = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    near = np.concatenate([*neighbours, np.array([tiny, -tiny, 1e-20, 1e30, -1e30, large, -large], np.float32)])
    near[np.abs(near) < tiny] = 0.0  # numbers below the smallest normal one count in part
    values = torch.from_numpy(near)[:, None]
    model = lowered(Comparisons(), torch.zeros(1, 1), ("a", "b", "c", "d", "e"))
    assert {node.op_type for node in model.graph.node} == {"HardSigmoid"}
    for ours, theirs in zip(run(model, values), Comparisons()(values), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


class Entering(nn.Module):
    """A product of a convolution's result with something that was spread: it enters through ones."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        features = self.convolution(images)
        return (features * features.mean((2, 3), keepdim=True).expand(-1, -1, 5, 6),)


def test_what_enters_the_blocked_layout_is_not_changed() -> None:
    images = torch.rand(2, 16, 5, 6, generator=torch.Generator().manual_seed(0))
    module = Entering()
    model = lowered(module, images)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 2
    torch.testing.assert_close(torch.from_numpy(run(model, images)[0]), module(images)[0])


class Stuck(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (inputs.reshape(3, -1),)


class Mixing(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (inputs.mean(0),)


class Unknown(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (torch.special.bessel_j0(inputs),)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Stuck(), "any number of items"), (Mixing(), "one row for each item"), (Unknown(), "bessel")],
)
def test_what_cannot_be_lowered_is_one_clear_line(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        lowered(module, torch.rand(1, 4))
    assert "\n" not in str(caught.value)
