"""Rewrites of an exported graph that change how fast ONNX Runtime computes it, and not what it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH = "batch"  # name of the free axis
BLOCKED = {"Relu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu", "MaxPool", "AveragePool", "Add", "Mul"}
SPREAD = {"Reshape", "Slice", "Expand", "Resize"}  # how gradients come out of strides and pools, never blocked


def comparisons_as_hard_sigmoids(graph: onnx.GraphProto) -> None:
    """Write float(x > c) and float(x < c) as HardSigmoid, and 1 - s as well where s is in [0, 1].

    HardSigmoid(x) = max(0, min(1, slope x + offset)) is the one comparison in ONNX Runtime's blocked convolution
    layout; any other makes it reorder two tensors. A power of two as slope makes the product exact, and so the answer:
    neighbouring floats around c differ by 1 or more after it. (Around 0, numbers below 2**-126 count in part.)
    """
    made_by = {name: node for node in graph.node for name in node.output}
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        match node.op_type:
            case "Cast" if attribute(node, "to") == TensorProto.FLOAT:
                test = made_by.get(node.input[0])
                limit = (
                    scalar(fixed, test.input[1]) if test is not None and test.op_type in ("Greater", "Less") else None
                )
                if test is not None and limit is not None:
                    slope = math.copysign(2.0 ** (126 if limit == 0 else 100), 1 if test.op_type == "Greater" else -1)
                    become_hard_sigmoid(node, test.input[0], slope, -slope * limit)
            case "Sub" if scalar(fixed, node.input[0]) == 1.0:
                share = made_by.get(node.input[1])
                if share is not None and share.op_type in ("Sigmoid", "HardSigmoid"):
                    become_hard_sigmoid(node, node.input[1], -1.0, 1.0)
    drop_unread(graph)


def clipped_steps_as_hard_sigmoids(graph: onnx.GraphProto) -> None:
    """Write min(s * t, c), where s and t are 0 or 1 and 0 < c <= 1, as HardSigmoid of slope c: it stays blocked."""
    made_by = {name: node for node in graph.node for name in node.output}
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        match node.op_type:
            case "Clip" if len(node.input) == 3 and not node.input[1]:
                top = scalar(fixed, node.input[2])
            case "Min" if len(node.input) == 2:
                top = scalar(fixed, node.input[1])
            case _:
                continue
        product = made_by.get(node.input[0])
        if top is None or not 0 < top <= 1 or product is None or product.op_type != "Mul":
            continue
        if all(name in made_by and made_by[name].op_type == "HardSigmoid" for name in product.input):
            become_hard_sigmoid(node, node.input[0], top, 0.0)
    drop_unread(graph)


def means_as_pools(graph: onnx.GraphProto) -> None:
    """Write means over height and width as GlobalAveragePool, which reads the blocked layout; ReduceMean does not."""
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {value.name: sizes_of(value) for value in graph.value_info}
    nodes = []
    for node in graph.node:
        if not averages_a_map(node, fixed, sizes):
            nodes.append(node)
            continue
        keeps = attribute(node, "keepdims") != 0
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool"))
        if not keeps:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], name=node.name, axis=1))
    graph.ClearField("node")
    graph.node.extend(nodes)
    drop_unread(graph)


def averages_a_map(
    node: onnx.NodeProto, fixed: Mapping[str, TensorProto], sizes: Mapping[str, tuple[int, ...] | None]
) -> bool:
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in fixed:
        return False
    axes = onnx.numpy_helper.to_array(fixed[node.input[1]]).ravel().tolist()
    shape = sizes.get(node.input[0])
    return shape is not None and len(shape) == 4 and sorted(axis % 4 for axis in axes) == [2, 3]


def enter_blocks(graph: onnx.GraphProto) -> None:
    """Move what meets a convolution's result in a sum or product into the blocked layout, not that result out of it.

    A tensor enters through a 1x1 convolution with one filter a channel, each 1: it multiplies by 1 and nothing else.
    """
    sizes = {value.name: sizes_of(value) for value in graph.value_info}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    filters = {tensor.name: tensor.dims for tensor in graph.initializer}
    blocked: set[str] = set()
    entered: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        size = sizes.get(node.input[0])
        if node.op_type in ("Add", "Mul") and size is not None and size == sizes.get(node.input[1]):
            outside = [name for name in node.input if entered.get(name, name) not in blocked]
            spread = len(outside) == 1 and made_by.get(outside[0]) in SPREAD
            if spread and size[1] % 16 == 0:  # whole blocks, whatever their width
                (name,) = outside
                nodes.append(entrance(graph, name, size[1]))
                entered[name] = nodes[-1].output[0]
                blocked.add(entered[name])
            node.input[:] = [entered.get(name, name) for name in node.input]
        operands = node.input if node.op_type in ("Add", "Mul") else node.input[:1]
        if convolves_blocks(node, filters) or (node.op_type in BLOCKED and blocked.issuperset(operands)):
            blocked.update(node.output)
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def convolves_blocks(node: onnx.NodeProto, filters: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether ONNX Runtime computes this convolution in blocks: ungrouped, or one filter a channel."""
    if node.op_type != "Conv" or node.input[1] not in filters:
        return False
    groups = attribute(node, "group") or 1
    outputs, inputs = filters[node.input[1]][:2]
    return bool(groups == 1 or (inputs == 1 and outputs == groups))


def entrance(graph: onnx.GraphProto, name: str, channels: int) -> onnx.NodeProto:
    ones = numpy_helper.from_array(np.ones((channels, 1, 1, 1), np.float32), f"{name}_ones")
    graph.initializer.append(ones)
    return helper.make_node("Conv", [name, ones.name], [f"{name}_entered"], group=channels, kernel_shape=[1, 1])


def sizes_of(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return [batch (0), channel, height, width] of an image tensor of fixed size, else None."""
    sizes = value.type.tensor_type.shape.dim
    fixed = len(sizes) == 4 and sizes[0].dim_param == BATCH and all(size.dim_value > 0 for size in sizes[1:])
    return tuple(size.dim_value for size in sizes) if fixed else None


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)


def scalar(fixed: dict[str, TensorProto], name: str) -> float | None:
    """Return the value of a fixed float32 number, None for anything else."""
    tensor = fixed.get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    value = numpy_helper.to_array(tensor)
    return float(value.item()) if value.size == 1 and value.ndim == 0 else None


def become_hard_sigmoid(node: onnx.NodeProto, operand: str, slope: float, offset: float) -> None:
    output, name = node.output[0], node.name
    node.CopyFrom(helper.make_node("HardSigmoid", [operand], [output], name, alpha=slope, beta=offset + 0.0))


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and tensors that nothing reads any more, last first."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    kept.reverse()
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    values = [value for value in graph.value_info if value.name in read]
    for field, remaining in (("node", kept), ("initializer", tensors), ("value_info", values)):
        graph.ClearField(field)
        getattr(graph, field).extend(remaining)
