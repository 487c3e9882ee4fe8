"""Models in fewer bits for tests: halves by cast and by converter, and quantised files as ONNX Runtime makes them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.onnx_files import quiet, write_onnx


class HalfInside(nn.Module):
    """A network of half precision from and to float32, as it is exported for serving."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(model).half()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x.half()).float()
        return logits


def rounded_to_half(model: nn.Module, *, but: type[nn.Module] | tuple[()] = ()) -> nn.Module:
    """The float32 network whose weights a half-precision file holds; layers of the kind `but` keep theirs."""
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if not isinstance(layer, but):
            for weight in layer.parameters(recurse=False):
                weight.data = weight.data.half().float()
    return rounded


def without_norm(model: nn.Module) -> nn.Module:
    """The same network with its first layers, a convolution and a batch normalisation, as one: exporters fold them."""
    convolution, norm, *others = copy.deepcopy(model).eval().children()
    return nn.Sequential(fuse_conv_bn_eval(convolution, norm), *others).eval().requires_grad_(False)


def write_half(model: nn.Module, file: Path, shape: tuple[int, ...], **settings: Any) -> Path:
    """The network as onnxconverter-common writes it; `keep_io_types=True` leaves input and output in float32."""
    whole = onnx.load(write_onnx(model, file, shape, exporter="legacy"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are zero in float16
        onnx.save(convert_float_to_float16(whole, **settings), file)
    return file


class FromDouble(nn.Module):
    """A network that takes float64, and computes in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(model)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x.float())
        return logits


def write_double(model: nn.Module, file: Path, shape: tuple[int, ...]) -> Path:
    """Write a network as a file that takes float64."""
    example = torch.zeros(2, *shape, dtype=torch.float64)
    axes = {"input": {0: "item"}, "logits": {0: "item"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": axes}
    with quiet():
        torch.onnx.export(FromDouble(model).eval(), (example,), str(file), dynamo=False, **names)
    return file


class RangeItems(CalibrationDataReader):  # type: ignore[misc]
    """Inputs [item, ...] in batches, for the ranges of the activations."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.parts: Iterator[dict[str, Any]] = iter([{"input": part} for part in np.array_split(images, 4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.parts, None)


def write_quantised(
    model: nn.Module, file: Path, images: NDArray[np.float32], *, form: QuantFormat = QuantFormat.QDQ, **settings: Any
) -> Path:
    """The network quantised by ONNX Runtime, its ranges found on images."""
    whole = write_onnx(model, file.with_name("float.onnx"), images.shape[1:], exporter="legacy")
    quantize_static(whole, file, RangeItems(images), quant_format=form, **settings)
    return file
