"""A file of half or double precision as the same graph in float32: its constants and casts are of that width.

Rule 1. Only widths change: each node, its order and each tensor's name stay, so that ONNX Runtime can run both.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE
TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast; of what makes tensors from nothing


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Tell whether a file computes in float16, or has such an input or output, beyond weights that it keeps so."""
    graphs = list(graphs_of(model.graph))
    kept = {tensor.name for graph in graphs for tensor in graph.initializer if tensor.data_type == HALF}
    for graph in graphs:
        for node in graph.node:
            if node.op_type == "Constant" and any(a.t.data_type == HALF for a in node.attribute):
                kept.update(node.output)
                continue
            made = any(a.name in TYPE_ATTRIBUTES and a.i == HALF for a in node.attribute)
            if made or (node.op_type != "Cast" and kept.intersection(node.input)):
                return True
    ends = (*model.graph.input, *model.graph.output)
    return any(value.type.tensor_type.elem_type == HALF and value.name not in kept for value in ends)


def takes_doubles(model: onnx.ModelProto) -> bool:
    """Tell whether a file takes float64, as skl2onnx writes a pipeline that was fitted on numpy's own numbers."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    return any(value.type.tensor_type.elem_type == TensorProto.DOUBLE for value in inputs)


def in_float32(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """Return a copy in which all that is of a width, float16 or float64, is float32."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for graph in graphs_of(wide.graph):
        rewrite(graph, width)
    return wide


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those within its nodes: branches and bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def rewrite(graph: onnx.GraphProto, width: int) -> None:
    del graph.value_info[:]  # of tensors between: they follow from the rest
    for tensor in graph.initializer:
        rewrite_tensor(tensor, width)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == width:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                rewrite_tensor(attribute.t, width)
            elif attribute.name in TYPE_ATTRIBUTES and attribute.i == width:
                attribute.i = TensorProto.FLOAT


def rewrite_tensor(tensor: TensorProto, width: int) -> None:
    if tensor.data_type == width:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
