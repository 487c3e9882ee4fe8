"""ONNX files for tests: by torch's two exporters, with a free or a fixed batch, and as Keras would write them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import frozen

EXPORTERS = ("default", "legacy")
BATCHES = {"dynamic": None, "fixed 1": 1, "fixed 3": 3}


def write_onnx(
    model: nn.Module,
    file: Path,
    shape: Sequence[int],
    *,
    exporter: str = "default",
    batch: int | None = None,
    **settings: Any,
) -> Path:
    """The model exported for inputs `input` [item, ...] and an output `logits`; `batch` None: any number of items."""
    example = torch.rand(batch or 2, *shape, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False, **settings}
    with quiet():
        if exporter == "legacy":
            axes = None if batch else {"input": {0: "item"}, "logits": {0: "item"}}
            torch.onnx.export(model.eval(), (example,), str(file), dynamo=False, dynamic_axes=axes, **names)
        else:
            shapes = None if batch else ({0: torch.export.Dim("item")},)
            torch.onnx.export(model.eval(), (example,), str(file), dynamo=True, dynamic_shapes=shapes, **names)
    return file


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters say of their age and of torchvision, and without the graphs that they print."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    shape: Sequence[int | str],
    *,
    kind: int = TensorProto.FLOAT,
    given: str = "input",
    output: str = "output",
    output_kind: int = TensorProto.FLOAT,
    output_shape: Sequence[int | str] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model of one input of that shape."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(given, kind, shape)],
        [helper.make_tensor_value_info(output, output_kind, output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


class Keras(nn.Module):
    """A network as Keras makes them: bytes [item, height, width, channel] are rescaled and normalised inside.

    Convolutions of stride 2 with uneven "same" padding, each before a batch normalisation and a ReLU; a mean, a linear
    layer, a softmax. In torch it maps unit-space images [item, channel, height, width] to logits; `write` writes what
    tf2onnx would.
    """

    def __init__(self, shape: tuple[int, int, int], widths: Sequence[int] = (8, 16), classes: int = 5) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng():
            torch.manual_seed(0)
            depths = [shape[0], *widths]
            self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2) for a, b in pairwise(depths))
            self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in widths)
            self.head = nn.Linear(widths[-1], classes)
            frozen(self)
        self.register_buffer("mean", torch.linspace(0.3, 0.5, shape[0]))
        self.register_buffer("deviation", torch.linspace(0.2, 0.3, shape[0]))

    def forward(self, images: Tensor) -> Tensor:
        mean, deviation = (part.reshape(-1, 1, 1) for part in (self.mean, self.deviation))
        maps = (images - mean) / deviation
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            bottom, right = (1 if size % 2 == 0 else 2 for size in maps.shape[2:])
            maps = torch.relu(norm(convolution(functional.pad(maps, (right // 2, 1, bottom // 2, 1)))))
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits

    def write(self, file: Path, *, batch: int | str = "item") -> Path:
        """A file from `image` [batch, height, width, channel], uint8, to `probabilities`."""
        channels, height, width = self.shape
        constants = {f"model/{name}": value.detach().numpy() for name, value in self.state_dict().items()}
        constants |= {"scale": np.asarray(1 / 255, np.float32), "axes": np.asarray([2, 3])}
        constants["model/head.weight"] = constants["model/head.weight"].T.copy()
        names = (
            ("Cast", "image", "model/cast:0", ()),
            ("Mul", "model/cast:0", "model/rescaling/mul:0", ("scale",)),
            ("Sub", "model/rescaling/mul:0", "model/normalization/sub:0", ("model/mean",)),
            ("Div", "model/normalization/sub:0", "model/normalization/truediv:0", ("model/deviation",)),
            ("Transpose", "model/normalization/truediv:0", "maps", ()),
        )
        settings: dict[str, dict[str, Any]] = {"Cast": {"to": TensorProto.FLOAT}, "Transpose": {"perm": [0, 3, 1, 2]}}
        nodes = [helper.make_node(k, [a, *more], [b], **settings.get(k, {})) for k, a, b, more in names]
        maps = "maps"
        for index in range(len(self.norms)):
            name, given = f"model/conv{index}", [f"model/convolutions.{index}.{part}" for part in ("weight", "bias")]
            norm = [f"model/norms.{index}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
            nodes += [
                helper.make_node("Conv", [maps, *given], [f"{name}:0"], auto_pad="SAME_UPPER", strides=[2, 2]),
                helper.make_node("BatchNormalization", [f"{name}:0", *norm], [f"{name}/bn:0"], epsilon=1e-3),
                helper.make_node("Relu", [f"{name}/bn:0"], [f"{name}/Relu:0"]),
            ]
            maps = f"{name}/Relu:0"
        nodes += [
            helper.make_node("ReduceMean", [maps, "axes"], ["model/pool/Mean:0"], keepdims=0),
            helper.make_node("MatMul", ["model/pool/Mean:0", "model/head.weight"], ["model/head/MatMul:0"]),
            helper.make_node("Add", ["model/head/MatMul:0", "model/head.bias"], ["model/head/BiasAdd:0"]),
            helper.make_node("Softmax", ["model/head/BiasAdd:0"], ["probabilities"]),
        ]
        read = {name for node in nodes for name in node.input}
        constants = {name: value for name, value in constants.items() if name in read}
        sizes = [batch, height, width, channels]
        named = {"given": "image", "output": "probabilities", "output_shape": [batch, self.head.out_features]}
        model = model_of(nodes, constants, sizes, kind=TensorProto.UINT8, **named)
        onnx.checker.check_model(model)
        onnx.save(model, file)
        return file


KERAS = Keras((3, 17, 16))
