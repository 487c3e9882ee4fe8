"""A quantised file (QDQ) as the float graph that it describes: QuantizeLinear and DequantizeLinear are taken out.

Rule 1. Weights are the numbers that their bytes stand for, computed here.
Rule 2. A pair around an activation keeps its clipping and loses its rounding, so that the gradient is the float
graph's wherever nothing saturates. Example: scale 0.1, zero point 0, uint8: the pair is Clip(0, 25.5).
Rule 3. What is not such a pair stays as it is, for the table of operators to refuse.

The pair that reads the input clips half a step later, where rounding would: an input that is exactly white may lie a
rounding error beyond. The pair before the output does not clip at all: a logit that saturates has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
PAIR = ("QuantizeLinear", "DequantizeLinear")
MOVES = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # scale unchanged
ENDS = (*PAIR, *MOVES, "ArgMax", "LogSoftmax", "Softmax")  # between logits and output
CLIP_INPUTS_VERSION = 11  # from which Clip takes its limits as operands


@dataclass(frozen=True, eq=False)
class Quantisation:
    """The whole numbers that a tensor is kept in: value = (number - zero) * step, per tensor or along an axis."""

    step: Array
    zero: Array
    axis: int
    block: int

    def same(self, other: Quantisation) -> bool:
        """Tell whether the same number stands for the same value in both."""
        return np.array_equal(self.step, other.step) and np.array_equal(self.zero, other.zero)

    @property
    def limits(self) -> tuple[Array, Array]:
        """The smallest and the largest value that can be kept."""
        low, high = (limit - self.zero.astype(np.float32) for limit in bounds_of(self.zero))
        return low * self.step, high * self.step

    def along(self, values: Array, axes: int, size: int) -> Array:
        """Return steps or zeros shaped to broadcast over a tensor of so many axes and that size along its axis."""
        wide = values.astype(np.float32)
        axis = self.axis % axes
        if self.block:
            return np.repeat(wide, self.block, axis=axis).take(range(size), axis=axis)
        return wide if wide.size == 1 else wide.reshape([-1 if i == axis else 1 for i in range(axes)])


def is_quantised(model: onnx.ModelProto) -> bool:
    """Tell whether a file has operators that turn floats to bytes or back."""
    return any(node.op_type in PAIR and not node.domain for node in model.graph.node)


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which weights are floats and each pair around an activation is a clip."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    Rewrite(made).run()
    return made


class Rewrite:
    """A walk along the nodes of a file's graph, which replaces the pairs on its way."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer if small_or_bytes(t)}
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in self.graph.input}
        self.scales: dict[str, Quantisation] = {}  # of tensors that were whole numbers and are values now
        self.last = before_output(self.graph)
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, Array] = {}

    def run(self) -> None:
        """Replace what can be replaced; nodes and constants that nothing reads any more are dropped."""
        moving = self.pairs_alone()
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            replaced = self.replaced(node, moving) if node.op_type in PAIR and not node.domain else None
            if replaced is None and node.op_type in MOVES and node.input[0] in self.scales:
                self.scales[node.output[0]] = self.scales[node.input[0]]
            self.nodes.extend([node] if replaced is None else replaced)
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read and tensor.name not in self.added]
        kept += [numpy_helper.from_array(value, name) for name, value in self.added.items() if name in read]
        nodes = [node for node in self.nodes if node.op_type != "Constant" or node.output[0] in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def pairs_alone(self) -> set[str]:
        """Return the tensors of whole numbers that only DequantizeLinear reads, directly or after they were moved."""
        kinds: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                kinds.setdefault(name, []).append(node)
        alone: set[str] = set()
        for node in reversed(self.graph.node):
            readers = kinds.get(node.output[0], [])
            if readers and all(
                reader.op_type == "DequantizeLinear" or (reader.op_type in MOVES and reader.output[0] in alone)
                for reader in readers
            ):
                alone.add(node.output[0])
        return alone

    def scale_of(self, node: onnx.NodeProto, kind: Any = np.uint8) -> Quantisation | None:
        """Return what a node of a pair divides or multiplies by; None where the input decides it."""
        if any(name and name not in self.constants for name in node.input[1:]):
            return None
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        step = self.constants[node.input[1]]
        if len(node.input) > 2 and node.input[2]:
            zero = self.constants[node.input[2]]
        else:
            named = settings.get("output_dtype", 0)
            zero = np.zeros(step.shape, helper.tensor_dtype_to_np_dtype(named) if named else kind)
        return Quantisation(step, zero, settings.get("axis", 1), settings.get("block_size", 0))

    def replaced(self, node: onnx.NodeProto, moving: set[str]) -> list[onnx.NodeProto] | None:
        """Return what stands in a node's place; None where it must stay."""
        given, made = node.input[0], node.output[0]
        constant = self.constant(given)
        scale = self.scale_of(node, np.uint8 if constant is None else constant.dtype)
        if scale is None or not is_whole(scale.zero):
            return None
        if node.op_type == "DequantizeLinear":
            if constant is not None:
                self.added[made] = self.constants[made] = values_of(constant, scale)
                return []
            if given in self.scales:
                return [renamed(node)] if scale.same(self.scales[given]) else None
            return self.from_bytes(node, scale) if self.inputs.get(given) == TensorProto.UINT8 else None
        if constant is not None:
            scale = self.scale_of(node) or scale
            self.constants[made] = numbers_of(constant, scale)
            return []
        if made not in moving or scale.block:
            return None
        self.scales[made] = scale
        return [renamed(node)] if made in self.last else self.clipped(node, scale)

    def constant(self, name: str) -> Array | None:
        if name in self.tensors and name not in self.constants:
            self.constants[name] = numpy_helper.to_array(self.tensors[name])
        return self.constants.get(name)

    def clipped(self, node: onnx.NodeProto, scale: Quantisation) -> list[onnx.NodeProto] | None:
        """Return the clip that a quantisation is beside its rounding: one for all, or one each along the axis."""
        given, made = node.input[0], node.output[0]
        slack = scale.step / 2 if given in self.inputs else np.zeros_like(scale.step)
        low, high = scale.limits
        low, high = (np.asarray(limit, np.float32) for limit in (low - slack, high + slack))
        if low.size > 1:
            return None  # along an axis: no exporter quantises activations so, and Clip has one limit for all
        if self.opset < CLIP_INPUTS_VERSION:
            return [helper.make_node("Clip", [given], [made], node.name, min=float(low), max=float(high))]
        names = [f"{made} {end}" for end in ("low", "high")]
        self.added.update(zip(names, (low.reshape(()), high.reshape(())), strict=True))
        return [helper.make_node("Clip", [given, *names], [made], node.name)]

    def from_bytes(self, node: onnx.NodeProto, scale: Quantisation) -> list[onnx.NodeProto] | None:
        """Return the arithmetic that turns an input of bytes to values."""
        if scale.step.size > 1:
            return None
        given, made = node.input[0], node.output[0]
        self.added[f"{made} zero"] = scale.zero.astype(np.float32).reshape(())
        self.added[f"{made} step"] = scale.step.astype(np.float32).reshape(())
        return [
            helper.make_node("Cast", [given], [f"{made} number"], node.name, to=TensorProto.FLOAT),
            helper.make_node("Sub", [f"{made} number", f"{made} zero"], [f"{made} moved"], node.name),
            helper.make_node("Mul", [f"{made} moved", f"{made} step"], [made], node.name),
        ]


def small_or_bytes(tensor: TensorProto) -> bool:
    """Tell whether a constant can be a step, a zero point or a weight in bytes; large floats are read when needed."""
    return tensor.data_type != TensorProto.FLOAT or len(tensor.dims) <= 1


def is_whole(zero: Array) -> bool:
    return bool(zero.dtype.name.lstrip("u").startswith("int"))


def bounds_of(zero: Array) -> tuple[float, float]:
    """Return the smallest and largest number of a type such as int8 or uint4; numpy itself knows none below a byte."""
    name = zero.dtype.name
    bits = int(name.lstrip("uint"))
    return (0.0, 2.0**bits - 1) if name.startswith("u") else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def renamed(node: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("Identity", [node.input[0]], list(node.output), node.name)


def values_of(numbers: Array, scale: Quantisation) -> Array:
    """Return the floats that whole numbers stand for."""
    size = numbers.shape[scale.axis % numbers.ndim] if numbers.ndim else 1
    step, zero = (scale.along(part, max(numbers.ndim, 1), size) for part in (scale.step, scale.zero))
    return np.asarray((numbers.astype(np.float32) - zero) * step, np.float32).reshape(numbers.shape)


def numbers_of(values: Array, scale: Quantisation) -> Array:
    """Return the whole numbers that floats are kept in, rounded to even and saturated."""
    size = values.shape[scale.axis % values.ndim] if values.ndim else 1
    step, zero = (scale.along(part, max(values.ndim, 1), size) for part in (scale.step, scale.zero))
    whole = np.rint(values.astype(np.float32) / step) + zero
    return np.asarray(whole.clip(*bounds_of(scale.zero))).astype(scale.zero.dtype).reshape(values.shape)


def before_output(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors between the logits and the outputs, where no pair may clip."""
    makers: Mapping[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    for value in graph.output:
        name = value.name
        while name in makers and makers[name].op_type in ENDS:
            found.add(name)
            name = makers[name].input[0]
    return found
