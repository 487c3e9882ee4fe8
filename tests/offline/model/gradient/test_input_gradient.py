"""Every adjoint against torch.autograd on the original network, in ONNX Runtime, at two batch sizes.

Weights and pixels are multiples of 1/16, so that sums come out alike in whatever order they are added: ties and zeros
are exact on both sides, and an adjoint that routes them otherwise is found out. Every variant is run in torch, one of
each operator in ONNX Runtime; `python -m tests.offline.model.test_adjoint` exports all and prints the table of errors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import ADJOINTS, ADJOINTS_SMOOTH, top_class, with_gradient
from guard.offline.model.gradient.tape import Sent, Tape
from guard.offline.model.graph.batch_norm import fold_batch_norm
from guard.offline.model.onnx_export.export import lower
from tests.networks import graph_of, mobilenet, resnet20, small_cnn

Function = Callable[[Tensor], Tensor]
aten = torch.ops.aten

FORWARD_LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3  # relative L2 an item


class Network(nn.Module):
    """An operator (a module or a function), then a linear layer; all weights are multiples of 1/16."""

    def __init__(self, operator: nn.Module | Function, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.operator = operator
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            features = operator(torch.full((2, *shape), 0.5)).flatten(1).shape[1]
            self.head = nn.Linear(features, 4)
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-16, 17, parameter.shape) / 16)
            for buffer in self.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.randint(4, 17, buffer.shape) / 16)
        self.eval().requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.operator(inputs).flatten(1)))


def kinks(function: Function) -> Function:
    """On the whole numbers from -8 to 8, where the kinks of ReLU6, hard-swish and their like lie."""
    return lambda inputs: function(16.0 * inputs - 8.0)


def convolution(*settings: Any, **more: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(*settings, **more), nn.ReLU(), nn.Conv2d(settings[1], 2, 1))


class Residual(nn.Module):
    """In-place addition and activation, as torchvision's residual blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.skip = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(3, 4, 1, 2)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        path = self.two(self.activation(self.one(images)))
        path += self.skip(images)
        return cast(Tensor, self.activation(path))


class Gate(nn.Module):
    """Squeeze and excitation: a product with broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return images * torch.sigmoid(self.squeeze(images.mean((2, 3), keepdim=True)))


class Attention(nn.Module):
    """Tokens, self-attention with two heads, a skip."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.attend, self.packed, self.norm = attend, nn.Linear(6, 18), nn.LayerNorm(6)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.packed(self.norm(tokens)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (2, 3)).transpose(1, 2) for part in (query, key, value)]
        return tokens + self.attend(*heads).transpose(1, 2).flatten(2)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / 3**0.5).softmax(-1) @ value


def packed_attention() -> nn.Module:
    attention = nn.MultiheadAttention(6, 2, batch_first=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, tokens: Tensor) -> Tensor:
            return cast(Tensor, self.attention(tokens, tokens, tokens, need_weights=False)[0])

    return Packed()


def in_volumes(layer: nn.Module) -> nn.Module:
    """A layer for volumes, which here are images whose channels are the depth."""
    return nn.Sequential(nn.Unflatten(1, (1, 3)), layer)


def norm_first() -> nn.Module:
    """Pre-activation: a batch normalisation that no convolution can take."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def vectors(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


Builder = Callable[[], nn.Module | Function]
IMAGE, TOKENS = (3, 9, 12), (5, 6)
VECTOR, DOUBLE = torch.arange(-6, 6) / 16, torch.float64
FAMILIES: Mapping[str, tuple[tuple[int, ...], Mapping[str, Builder]]] = {
    "pointwise": (
        (3, 4, 6),
        {
            "relu": lambda: kinks(F.relu),
            "relu_": lambda: kinks(functools.partial(F.relu, inplace=True)),
            "relu6": lambda: kinks(F.relu6),
            "hardtanh": lambda: kinks(functools.partial(F.hardtanh, min_val=-2.0, max_val=3.0)),
            "leaky_relu": lambda: kinks(functools.partial(F.leaky_relu, negative_slope=0.25)),
            "clamp": lambda: kinks(lambda x: x.clamp(-2, 3) + x.clamp_min(1) * x.clamp_max(4)),
            "abs": lambda: kinks(torch.abs),
            "silu": lambda: kinks(F.silu),
            "hardswish": lambda: kinks(F.hardswish),
            "hardsigmoid": lambda: kinks(F.hardsigmoid),
            "sigmoid": lambda: kinks(torch.sigmoid),
            "tanh": lambda: kinks(torch.tanh),
            "erf": lambda: kinks(torch.erf),
            "sin, cos, tan": lambda: lambda x: x.sin() + (2 * x).cos() + x.tan(),
            "asin, acos, atan": lambda: lambda x: (0.9 * x).asin() - (0.5 * x).acos() + (3 * x).atan(),
            "sinh, cosh": lambda: lambda x: x.sinh() + (2 * x).cosh(),
            "asinh, acosh, atanh": lambda: lambda x: (4 * x - 2).asinh() + (x + 1.5).acosh() + (0.9 * x).atanh(),
            "gelu": lambda: kinks(F.gelu),
            "gelu tanh": lambda: kinks(functools.partial(F.gelu, approximate="tanh")),
            "elu": lambda: kinks(F.elu),
            "softplus": lambda: kinks(F.softplus),
            "cast": lambda: lambda x: (x.double().sigmoid() * 3).float(),
            "exp, log": lambda: lambda x: (x.exp() + 1).log(),
            "sqrt, rsqrt": lambda: lambda x: (x + 1).sqrt() + (x + 2).rsqrt(),
            "fmod": lambda: lambda x: torch.fmod(3 * x - 1.37, 0.5),
            "fmod, remainder": lambda: (
                lambda x: torch.fmod(3 * x - 1.37, x + 0.71) + (2 * x - 1.37) % (x + 0.71) + x % 0.3
            ),
            "rrelu": lambda: lambda x: F.rrelu(x - 0.5),
            "pow, neg": lambda: lambda x: -((x + 1) ** 3),
            "add, sub, mul, div": lambda: lambda x: (2 * x + x * x - x / 3) / (x + 1) - torch.sub(1, x, alpha=2),
            "broadcasting": lambda: lambda x: x * x[:, :1] + x[:, :, :1] / (1 + x[..., :1]) - x.new_ones(4, 1),
            "where": lambda: lambda x: torch.where(x > 0.5, x * 2, -x),
            "where, numbers": lambda: lambda x: torch.where(x > 0.5, 2.0, x * x) * torch.where(x < 0.7, x, 0.5),
            "elu of three widths": lambda: kinks(lambda x: aten.elu.default(x, 1.5, 0.5, 0.25)),
        },
    ),
    "convolution": (
        IMAGE,
        {
            "3x3": lambda: convolution(3, 4, 3, padding=1),
            "1x1": lambda: convolution(3, 4, 1),
            "5x3, padding 2, 0": lambda: convolution(3, 4, (5, 3), padding=(2, 0)),
            "padding beyond the filter": lambda: convolution(3, 4, 1, padding=2),
            "even, same": lambda: convolution(3, 4, (2, 4), padding="same"),
            "stride 2": lambda: convolution(3, 4, 3, 2, 1),
            "stride 2, no padding": lambda: convolution(3, 4, 3, 2),
            "stride 2, 1x1": lambda: convolution(3, 4, 1, 2),
            "stride 3, 7x5, padding 3": lambda: convolution(3, 4, (7, 5), 3, 3),
            "stride 4, 2x2, gaps": lambda: convolution(3, 4, 2, 4),
            "stride 2, 3": lambda: convolution(3, 4, 3, (2, 3), 1),
            "stride 1, 2": lambda: convolution(3, 4, 3, (1, 2), 1),
            "patches": lambda: convolution(3, 4, 3, 3),
            "dilated": lambda: convolution(3, 4, 3, padding=2, dilation=2),
            "dilated, stride 2": lambda: convolution(3, 4, 3, 2, 2, dilation=2),
            "dilated 3, stride 2": lambda: convolution(3, 4, 3, 2, 1, dilation=(3, 2)),
            "grouped": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), convolution(4, 6, 3, padding=1, groups=2)),
            "grouped, stride 2": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), convolution(4, 6, 3, 2, 1, groups=2)),
            "depthwise": lambda: convolution(3, 3, 3, padding=1, groups=3),
            "depthwise, stride 2": lambda: convolution(3, 3, 5, 2, 2, groups=3),
            "depthwise, doubled": lambda: convolution(3, 6, 3, 2, 1, groups=3),
            "zeros around": lambda: nn.Sequential(nn.ZeroPad2d(2), convolution(3, 3, 5, groups=3)),
            "zeros around, uneven": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), convolution(3, 4, 3)),
            "zeros around, more than seen": lambda: nn.Sequential(nn.ZeroPad2d((4, 1, 3, 5)), convolution(3, 4, 3)),
            "zeros around and padding": lambda: nn.Sequential(nn.ZeroPad2d((0, 1)), convolution(3, 4, 3, padding=1)),
            "zeros around, stride 2": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), convolution(3, 4, 3, 2)),
            "ones around": lambda: nn.Sequential(nn.ConstantPad2d((1, 2, 0, 3), 1.0), convolution(3, 4, 3, 2)),
            "cut off": lambda: nn.Sequential(nn.ZeroPad2d((-1, 2, 0, -2)), convolution(3, 4, 3)),
            "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            "batch norm first": norm_first,
            "residual, in place": Residual,
        },
    ),
    "pool": (
        IMAGE,
        {
            "max 3": lambda: nn.MaxPool2d(3),
            "max 2, rows left over": lambda: nn.MaxPool2d(2),
            "max 3, stride 2": lambda: nn.MaxPool2d(3, 2, 1),
            "max 3, stride 2, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
            "max 3, stride 1": lambda: nn.MaxPool2d(3, 1, 1),
            "max 2, gaps": lambda: nn.MaxPool2d(2, 3),
            "max 3x2, stride 2, 1": lambda: nn.MaxPool2d((3, 2), (2, 1)),
            "max dilated": lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
            "max adaptive": lambda: nn.AdaptiveMaxPool2d((3, 4)),
            "max adaptive, uneven": lambda: nn.AdaptiveMaxPool2d((2, 5)),
            "max of negative numbers": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3, 2, 1)),
            "average 3": lambda: nn.AvgPool2d(3),
            "average 2, rows left over": lambda: nn.AvgPool2d(2),
            "average 3, stride 2, padding": lambda: nn.AvgPool2d(3, 2, 1),
            "average without padding counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            "average, ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
            "average, ceil, without padding": lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            "average 3, stride 1": lambda: nn.AvgPool2d(3, 1, 1),
            "average, divisor": lambda: nn.AvgPool2d(3, divisor_override=5),
            "average adaptive": lambda: nn.AdaptiveAvgPool2d((3, 4)),
            "average adaptive, uneven": lambda: nn.AdaptiveAvgPool2d((2, 5)),
            "average global": lambda: nn.AdaptiveAvgPool2d(1),
            "response norm": lambda: nn.LocalResponseNorm(2, alpha=0.5, beta=0.75, k=1.0),
            "volumes": lambda: in_volumes(nn.AvgPool3d(2)),
            "volumes, padding": lambda: in_volumes(nn.AvgPool3d((2, 3, 2), (1, 2, 1), (1, 1, 0))),
            "volumes, ceil": lambda: in_volumes(nn.AvgPool3d((2, 1, 3), ceil_mode=True, count_include_pad=False)),
            "mean": lambda: lambda x: x.mean((2, 3)) * x.mean(2).mean(-1),
            "sum": lambda: lambda x: (x * x).sum((-1, 1)),
        },
    ),
    "shape": (
        (4, 4, 6),
        {
            "reshape": lambda: lambda x: x.reshape(-1, 8, 12) * x.view(x.shape[0], 8, 12).sigmoid(),
            "permute, transpose": lambda: lambda x: x.permute(0, 2, 3, 1).transpose(1, -1) * 2,
            "cat": lambda: lambda x: torch.cat([x, x * x, torch.ones_like(x)], 1),
            "slice": lambda: lambda x: x[:, 1:3, ::2, -4:-1],
            "pick": lambda: lambda x: x.index_select(3, torch.tensor([3, 0, 0, 5, 1, 0])),
            "pick, each once": lambda: lambda x: x.index_select(-1, torch.tensor([3, 0, 5, 1, 4, 2])),
            "select, unbind": lambda: lambda x: x[:, 1] * x.unbind(2)[-1][:, :1],
            "chunk, split": lambda: lambda x: x.chunk(2, 1)[0] * torch.split(x, [1, 3, 2], 3)[1][:, :2, :, :1],
            "squeeze, expand": lambda: lambda x: x[:, :1].squeeze(1).unsqueeze(1).expand(-1, 3, -1, -1) * x[:, 1:],
            "pad": lambda: lambda x: F.pad(x, (1, 2, 0, 1)) ** 2,
            "reflect": lambda: lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect") ** 2,
            "replicate": lambda: lambda x: F.pad(x, (3, 0, 1, 7), mode="replicate") ** 2,
            "circular": lambda: lambda x: F.pad(x, (1, 2, 2, 0), mode="circular") ** 2,
            "shuffle": lambda: lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) ** 2,
            "flatten, dropout": lambda: lambda x: F.dropout(x.flatten(2).unflatten(2, (3, 8)), 0.5, False) ** 2,
        },
    ),
    "matrix": (
        (12,),
        {
            "linear": lambda: vectors(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)),
            "batch norm 1d": lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8)),
            "addmm, mm": lambda: lambda x: torch.addmm(x[:, :3], x @ torch.ones(12, 8), torch.ones(8, 3)),
            "matmul": lambda: lambda x: x.reshape(-1, 3, 4) @ x.reshape(-1, 4, 3),
            "bmm, baddbmm": lambda: lambda x: torch.baddbmm(*[torch.bmm(y, y) for y in [x[:, :9].view(-1, 3, 3)] * 3]),
            "softmax": lambda: lambda x: F.softmax(4 * x, 1),
            "log_softmax": lambda: lambda x: F.log_softmax(4 * x, 1),
            "softmax of another type": lambda: lambda x: F.softmax(4 * x, 1, dtype=torch.float64).float(),
            "log_softmax of the same type": lambda: lambda x: F.log_softmax(4 * x, 1, dtype=torch.float32),
            "sum, mean of another type": lambda: (
                lambda x: (x.sum(1, True, dtype=DOUBLE) * x.mean(1, dtype=DOUBLE)[:, None]).float()
            ),
            "vectors": lambda: lambda x: torch.cat([(x @ VECTOR)[:, None], torch.mv(x, VECTOR)[:, None]], 1),
            "vectors among stacks": lambda: (
                lambda x: x.view(-1, 3, 4) @ VECTOR[:4] * (VECTOR[:3] @ x.view(-1, 3, 4))[:, 1:]
            ),
        },
    ),
    "attention": (
        TOKENS,
        {
            "layer_norm": lambda: nn.LayerNorm(6),
            "layer_norm, two axes": lambda: nn.LayerNorm((5, 6), elementwise_affine=False),
            "plain attention": lambda: Attention(plain_attention),
            "scaled_dot_product_attention": lambda: Attention(F.scaled_dot_product_attention),
            "causal attention": lambda: Attention(functools.partial(F.scaled_dot_product_attention, is_causal=True)),
            "multi-head": packed_attention,
        },
    ),
    "resize": (
        (4, 5, 6),
        {
            "nearest, twice": lambda: lambda x: F.interpolate(x, scale_factor=2, mode="nearest") ** 2,
            "nearest, to 7x4": lambda: lambda x: F.interpolate(x, (7, 4), mode="nearest") ** 2,
            "bilinear, twice": lambda: lambda x: F.interpolate(x, scale_factor=2, mode="bilinear") ** 2,
            "bilinear, corners": lambda: lambda x: F.interpolate(x, (8, 9), mode="bilinear", align_corners=True) ** 2,
            "bilinear, smaller": lambda: lambda x: F.interpolate(x, (3, 4), mode="bilinear") ** 2,
            "diagonal, hstack": lambda: lambda x: torch.hstack([x[:, :2], x]).diagonal(1, 3, 1) ** 2,
            "group_norm": lambda: nn.GroupNorm(2, 4),
        },
    ),
}
EXPORTED: Mapping[str, tuple[str, ...]] = {  # each operator once; exporting takes longest
    "pointwise": ("relu", "relu6", "silu", "hardswish", "sigmoid", "gelu", "broadcasting"),
    "convolution": (
        "stride 1, 2",
        "stride 2",
        "dilated",
        "grouped, stride 2",
        "depthwise, stride 2",
        "batch norm first",
        "residual, in place",
    ),
    "pool": (
        "max 2, rows left over",
        "max 3, stride 2",
        "average 3",
        "average without padding counted",
        "average, divisor",
        "average adaptive, uneven",
        "average global",
    ),
    "shape": ("reshape", "permute, transpose", "cat", "slice", "pick"),
    "matrix": ("linear", "softmax", "addmm, mm"),
    "attention": ("plain attention", "scaled_dot_product_attention"),
    "resize": ("nearest, twice", "bilinear, twice"),
}


def inputs_of(shape: tuple[int, ...]) -> Tensor:
    """Five items on the grid of 1/16: random, constant, zero-bordered, of three levels, of two levels."""
    generator = torch.Generator().manual_seed(3)
    sixteenths = torch.randint(0, 17, (5, *shape), generator=generator).float()
    sixteenths[1] = 8.0
    sixteenths[2, ..., :2] = 0.0
    sixteenths[2, ..., -1] = 0.0
    sixteenths[3] = (sixteenths[3] / 8).round() * 8
    sixteenths[4] = (sixteenths[4] > 8) * 16
    return sixteenths / 16


def seed(logits: Tensor) -> Tensor:
    """Every logit, each with a weight of its own."""
    return torch.ones_like(logits) * (1.0 + torch.arange(logits.shape[1]))


def reference(model: nn.Module, inputs: Tensor, along: Callable[[Tensor], Tensor] = seed) -> tuple[Tensor, Tensor]:
    inputs = inputs.clone().requires_grad_(True)
    logits = model(inputs)
    (gradient,) = torch.autograd.grad((logits * along(logits).detach()).sum(), inputs)
    return logits.detach(), gradient


def relative(ours: NDArray[np.float32] | Tensor, theirs: Tensor) -> float:
    """The largest relative L2 difference of an item."""
    difference = (torch.as_tensor(ours) - theirs).flatten(1).norm(dim=1)
    return float((difference / theirs.flatten(1).norm(dim=1).clamp_min(1e-6)).max())


class Together(nn.Module):
    """Several networks of the same input as one, so that what exporting costs is paid once."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(inputs) for network in self.networks)


def run_in_onnx(module: nn.Module, batches: Sequence[Tensor], outputs: int) -> list[list[NDArray[np.float32]]]:
    names = [f"output_{index}" for index in range(outputs)]
    model = lower(module, batches[0], input_name="inputs", output_names=names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(names, {"inputs": batch.numpy()}) for batch in batches]


@dataclass(frozen=True)
class Family:
    """The networks of one input shape, in one graph; answers are the logits of each, then the gradient of each."""

    networks: Mapping[str, nn.Module]
    batches: tuple[Tensor, ...]  # five items, and the fourth (of three levels) alone
    graph: fx.GraphModule

    def errors(self, answers: Sequence[Sequence[NDArray[np.float32] | Tensor]]) -> dict[str, tuple[float, float]]:
        """The largest forward and gradient error of each network over all batches."""
        worst = {}
        for index, (name, network) in enumerate(self.networks.items()):
            found = []
            for batch, answer in zip(self.batches, answers, strict=True):
                logits, gradient = reference(network, batch)
                found.append((relative(answer[index], logits), relative(answer[index + len(self.networks)], gradient)))
            worst[name] = (max(forward for forward, _ in found), max(gradient for _, gradient in found))
        return worst


def family_of(family: str, names: Iterable[str]) -> Family:
    shape, builders = FAMILIES[family]
    inputs = inputs_of(shape)
    networks = {name: Network(builders[name](), shape) for name in names}
    return Family(networks, (inputs, inputs[3:4]), fold_batch_norm(graph_of(Together(networks.values()), inputs)))


@functools.cache
def errors_in_torch(family: str) -> Mapping[str, tuple[float, float]]:
    members = family_of(family, FAMILIES[family][1])
    graphs = [with_gradient(members.graph, seed=seed, output=index) for index in range(len(members.networks))]
    return members.errors(
        [[*members.graph(batch), *(graph(batch)[-1] for graph in graphs)] for batch in members.batches]
    )


@functools.cache
def errors_in_onnx(family: str, names: tuple[str, ...]) -> Mapping[str, tuple[float, float]]:
    members = family_of(family, names)
    graph = members.graph
    for index in range(len(names)):
        graph = with_gradient(graph, seed=seed, output=index)
    return members.errors(run_in_onnx(graph, members.batches, 2 * len(names)))


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family][1]], ids=str
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_every_gradient_is_torchs(family: str, name: str) -> None:
    forward, gradient = errors_in_torch(family)[name]
    assert forward <= FORWARD_LIMIT
    assert gradient <= GRADIENT_LIMIT


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in EXPORTED for name in EXPORTED[family]], ids=str
)
def test_gradient_in_onnx_runtime_is_torchs(family: str, name: str) -> None:
    forward, gradient = errors_in_onnx(family, EXPORTED[family])[name]
    assert forward <= FORWARD_LIMIT
    assert gradient <= GRADIENT_LIMIT


def test_gradient_of_a_whole_network_with_ties_of_the_logits() -> None:
    """Where two classes tie, the seed picks the first, as argmax does."""
    assert top_class(torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("build", [resnet20, mobilenet, small_cnn], ids=lambda build: build.__name__)
def test_whole_networks(build: Callable[[], nn.Module]) -> None:
    network = build()
    images = inputs_of((1, 8, 8) if build is small_cnn else (3, 32, 32))
    logits, gradient = with_gradient(fold_batch_norm(graph_of(network, images)), seed=top_class)(images)
    expected = reference(network, images, top_class)
    assert relative(logits, expected[0]) <= FORWARD_LIMIT
    # The few pixels under a ReLU that folding turned over count as outliers; random weights make few of them.
    differences = (gradient - expected[1]).flatten(1).norm(dim=1) / expected[1].flatten(1).norm(dim=1)
    assert float(differences.median()) <= GRADIENT_LIMIT


def curved() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, 2, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, groups=2), nn.GELU(), nn.AvgPool2d(2, 1, 1))
    return Network(nn.Sequential(*layers, nn.Flatten(2), nn.LayerNorm(20)), IMAGE)


def bend(graph: nn.Module, inputs: Tensor) -> Tensor:
    """The derivative of the squared length of the gradient."""
    inputs = inputs.clone().requires_grad_(True)
    *_, gradient = graph(inputs)
    return torch.autograd.grad((gradient**2).sum(), inputs)[0]


def test_the_gradient_can_be_differentiated_again() -> None:
    network = curved()
    inputs = inputs_of(IMAGE)
    twice = bend(with_gradient(graph_of(network, inputs), seed=seed), inputs)
    pixels = inputs.clone().requires_grad_(True)
    logits = network(pixels)
    (gradient,) = torch.autograd.grad((logits * seed(logits)).sum(), pixels, create_graph=True)
    (expected,) = torch.autograd.grad((gradient**2).sum(), pixels)
    assert expected.flatten(1).norm(dim=1).min() > 0
    assert relative(twice, expected) <= GRADIENT_LIMIT


def test_smooth_steps_change_no_gradient_but_bend_it() -> None:
    """Of a network of ReLUs the second derivative is zero: with smooth steps an attacker sees where the kinks are."""
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.LeakyReLU())
    inputs = inputs_of(IMAGE)
    graph = graph_of(Network(nn.Sequential(*layers), IMAGE), inputs)
    exact, smooth = with_gradient(graph, seed=seed), with_gradient(graph, seed=seed, adjoints=ADJOINTS_SMOOTH)
    assert torch.equal(exact(inputs)[1], smooth(inputs)[1])
    assert not exact(inputs.clone().requires_grad_(True))[1].requires_grad
    bent = bend(smooth, inputs)
    assert bent.isfinite().all()
    assert bent.flatten(1).norm(dim=1).min() > 0


def test_another_table_is_another_gradient() -> None:
    """The seam for guided backpropagation and the like: a rule replaced by listing it."""

    def doubled(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
        for operand, sent in ADJOINTS[aten.relu.default](tape, node, gradient):
            yield operand, tape.call(torch.mul, sent, 2.0)

    inputs = inputs_of((12,))
    graph = graph_of(Network(vectors(nn.Linear(12, 8), nn.ReLU()), (12,)), inputs)
    table = {**ADJOINTS, aten.relu.default: doubled}
    both = with_gradient(with_gradient(graph, seed=seed), seed=seed, adjoints=table)
    _, plainly, twofold = both(inputs)
    assert torch.equal(2 * plainly, twofold)


def test_an_operator_without_a_rule_is_named() -> None:
    graph = graph_of(Network(torch.special.entr, (12,)), inputs_of((12,)))
    with pytest.raises(ModelError, match=r"aten.special_entr.default \(special_entr\) has no adjoint"):
        with_gradient(graph, seed=seed)


def test_a_model_in_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout()).train()
    with pytest.raises(ModelError, match=r"call eval\(\)"):
        with_gradient(graph_of(network, inputs_of((12,))), seed=seed)


def test_an_output_that_ignores_the_input_is_refused() -> None:
    graph = graph_of(Network(torch.ones_like, (12,)), inputs_of((12,)))
    with pytest.raises(ModelError, match="does not depend on the input"):
        with_gradient(graph, seed=seed)


def test_a_view_changed_behind_its_back_is_refused() -> None:
    def change(inputs: Tensor) -> Tensor:
        doubled = 2 * inputs
        view = doubled.view(-1, 3, 4)
        doubled.relu_()
        return view

    with pytest.raises(ModelError, match="changes view in place"):
        with_gradient(graph_of(Network(change, (12,)), inputs_of((12,))), seed=seed)


if __name__ == "__main__":
    print(f"{'operator':46s} | forward  | gradient")
    for family, (_, builders) in FAMILIES.items():
        for name, (forward, gradient) in errors_in_onnx(family, tuple(builders)).items():
            print(f"{family + ': ' + name:46s} | {forward:.1e}  | {gradient:.1e}")
