"""ONNX files for tests: by torch's two exporters, with a free or a fixed batch, and as Keras would write them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

EXPORTERS = ("default", "legacy")
BATCHES = {"dynamic": None, "fixed 1": 1, "fixed 3": 3}


def write_onnx(
    model: nn.Module, file: Path, shape: Sequence[int], *, exporter: str = "default", batch: int | None = None
) -> Path:
    """The model exported for inputs `input` [item, ...] and an output `logits`; `batch` None: any number of items."""
    example = torch.rand(batch or 2, *shape, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False}
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
    """Without what the exporters say of their age and of torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
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
    output: str = "output",
    output_kind: int = TensorProto.FLOAT,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model of one input `input` of that shape."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(output, output_kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def keras_like(
    images: Sequence[int | str],
    filters: Sequence[NDArray[np.float32]],
    weight: NDArray[np.float32],
    *,
    batch: int | str,
) -> onnx.ModelProto:
    """As tf2onnx writes a small network: bytes [item, height, width, channel], rescaled and normalised inside.

    `filters` are convolutions [out, in, 3, 3] of stride 2 with Keras's uneven "same" padding, each before a batch
    normalisation and a ReLU; `weight` is [feature, class], with a softmax on top.
    """
    channels = filters[0].shape[1]
    constants: dict[str, NDArray[Any]] = {
        "scale": np.float32(1 / 255),
        "mean": np.linspace(0.3, 0.5, channels, dtype=np.float32),
        "deviation": np.linspace(0.2, 0.3, channels, dtype=np.float32),
        "head/kernel": weight,
        "head/bias": np.linspace(-0.1, 0.1, weight.shape[1], dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["input"], ["model/cast:0"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["model/cast:0", "scale"], ["model/rescaling/mul:0"]),
        helper.make_node("Sub", ["model/rescaling/mul:0", "mean"], ["model/normalization/sub:0"]),
        helper.make_node("Div", ["model/normalization/sub:0", "deviation"], ["model/normalization/truediv:0"]),
        helper.make_node("Transpose", ["model/normalization/truediv:0"], ["maps"], perm=[0, 3, 1, 2]),
    ]
    maps = "maps"
    for index, kernel in enumerate(filters):
        name = f"model/conv{index}"
        constants[f"{name}/kernel"] = kernel
        statistics = np.linspace(0.5, 1.5, len(kernel), dtype=np.float32)
        for part, value in (("gamma", statistics), ("beta", -0.1 * statistics), ("mean", 0.1 * statistics)):
            constants[f"{name}/{part}"] = value
        normalised = [f"{name}/{part}" for part in ("gamma", "beta", "mean", "gamma")]
        nodes += [
            helper.make_node("Conv", [maps, f"{name}/kernel"], [f"{name}:0"], auto_pad="SAME_UPPER", strides=[2, 2]),
            helper.make_node("BatchNormalization", [f"{name}:0", *normalised], [f"{name}/bn:0"], epsilon=1e-3),
            helper.make_node("Relu", [f"{name}/bn:0"], [f"{name}/Relu:0"]),
        ]
        maps = f"{name}/Relu:0"
    nodes += [
        helper.make_node("ReduceMean", [maps, "axes"], ["model/pool/Mean:0"], keepdims=0),
        helper.make_node("MatMul", ["model/pool/Mean:0", "head/kernel"], ["model/head/MatMul:0"]),
        helper.make_node("Add", ["model/head/MatMul:0", "head/bias"], ["model/head/BiasAdd:0"]),
        helper.make_node("Softmax", ["model/head/BiasAdd:0"], ["probabilities"]),
    ]
    constants["axes"] = np.asarray([2, 3])
    return model_of(nodes, constants, [batch, *images], kind=TensorProto.UINT8, output="probabilities")
