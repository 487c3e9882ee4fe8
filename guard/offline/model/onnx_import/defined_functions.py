"""Writes operators that ONNX defines by other operators as those: RMSNormalization, RotaryEmbedding, SwiGLU and more.

Rule 1. Only what the importer's table lacks is written so, and what it computes in part; a result keeps its name.
Rule 2. A definition that depends on types which the file does not show is not read; the table decides about its node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
import onnx.inliner
from onnx import helper

from guard.offline.model.onnx_import.half_precision import graphs_of
from guard.offline.model.onnx_import.refusals import BY_KIND

OWN_DOMAINS = ("", "ai.onnx")
MAX_SETTING_VALUES = 1024  # of a tensor that a definition may read, as sizes and axes; larger ones are weights
# Operators of the table, and attributes with which their definition is read instead.
IN_PART = {"Attention": ("q_num_heads", "kv_num_heads", "softcap", "qk_matmul_output_mode")}
BY_TYPE = "CastLike"  # a Cast where the type is known ahead, which sizes can take too


def with_functions_written_out(model: onnx.ModelProto, known: Collection[str]) -> onnx.ModelProto:
    """Return a model in which operators beyond the `known` ones are written by their definitions, where they have one.

    Example: RMSNormalization becomes Mul, ReduceMean, Add, Sqrt, Div and Mul.
    """
    lacking = {node.op_type for graph in graphs_of(model.graph) for node in graph.node if is_lacking(node, known)}
    if not lacking:
        return model
    defined = {schema.name for schema in onnx.defs.get_function_ops() if schema.domain == ""}
    within = defined.difference(known, BY_KIND) | {BY_TYPE}  # what a definition may hold itself
    if not lacking & defined:
        return model
    light, opset = without_weights(model), opset_of(model)
    for node in light.graph.node:
        if node.op_type in lacking & defined and onnx.defs.has(node.op_type, opset, node.domain):
            add_defaults(node, opset)
    light = written_out(light, sorted(lacking & defined | within))
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.graph.node[:]
    written.graph.node.extend(light.graph.node)
    return written


def is_lacking(node: onnx.NodeProto, known: Collection[str]) -> bool:
    """Tell whether a node is of ONNX's own and is not in the table, or has an attribute that the table lacks."""
    if node.domain not in OWN_DOMAINS or node.op_type in BY_KIND:
        return False
    beyond = IN_PART.get(node.op_type, ())
    in_part = node.op_type == BY_TYPE or any(attribute.name in beyond for attribute in node.attribute)
    return in_part or node.op_type not in known


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that shows types and sizes of its tensors, and values only of those that can be settings."""
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=model.graph.node,
        input=model.graph.input,
        output=model.graph.output,
        value_info=[*model.graph.value_info, *map(described, model.graph.initializer)],
        initializer=[tensor for tensor in model.graph.initializer if is_setting(tensor.dims)],
    )
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)


def described(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def is_setting(sizes: Sequence[int]) -> bool:
    count = 1
    for size in sizes:
        count *= size
    return count <= MAX_SETTING_VALUES


def opset_of(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in OWN_DOMAINS), 0)


def add_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Write the attributes that a node leaves out: a definition may read them by name."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def written_out(model: onnx.ModelProto, kinds: Sequence[str]) -> onnx.ModelProto:
    """Return a model with these operators written out, all but those whose types cannot be told."""
    try:
        return onnx.inliner.inline_selected_functions(
            model, [("", kind) for kind in kinds], inline_schema_functions=True
        )
    except RuntimeError:  # what onnx raises, untyped, for a type that it cannot infer
        if len(kinds) == 1:
            return model
    for kind in kinds:
        model = written_out(model, [kind])
    return model
