"""Parts of a compiled program: what each of its nodes is for, and excerpts of it that hold fewer nodes.

Rule 1: an excerpt holds nodes and weights of the program as they are; it never computes anything in another way.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from guard.errors import BundleError, first_line

FORWARD, BACKWARD, ROWS, HEADS, INPUT = "forward", "backward", "variant rows", "heads", "input"


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without its large weights, which stay in their file. Raises BundleError."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise BundleError(f"{path} is no ONNX graph: {first_line(error)}") from error


def write_graph(model: onnx.ModelProto, path: Path, weights_from: Path) -> Path:
    """Write the graph, and beside it those files of `weights_from` that it refers to."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).exists():
                shutil.copyfile(weights_from / entry.value, path.parent / entry.value)
    path.write_bytes(model.SerializeToString())
    return path


def excerpt(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return what these outputs take, and nothing else. Raises BundleError for an output that is not there."""
    have = {output.name: output for output in model.graph.output}
    if missing := [name for name in outputs if name not in have]:
        raise BundleError(f"the program gives no {missing[0]}; it gives {', '.join(have)}")
    part = onnx.ModelProto()
    part.CopyFrom(model)
    read = ancestors(model.graph, outputs)
    kept = [node for node in part.graph.node if read.intersection(node.output)]
    tensors = [tensor for tensor in part.graph.initializer if tensor.name in read]
    values = [value for value in part.graph.value_info if value.name in read]
    remaining = (("node", kept), ("initializer", tensors), ("value_info", values))
    for field, members in (*remaining, ("output", [have[name] for name in outputs])):
        part.graph.ClearField(field)
        getattr(part.graph, field).extend(members)
    return part


def without_detector(model: onnx.ModelProto, detectors: Sequence[str], name: str) -> onnx.ModelProto:
    """Return the program as if compiled without this detector, where no other one shares its variant rows."""
    if len(detectors) == 1:
        return excerpt(model, ("logits",))
    column = columns(model, detectors)[detectors.index(name)]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    joint = maker(part.graph, "scores")
    remaining = [operand for operand in joint.input if operand != column]
    joint.ClearField("input")
    joint.input.extend(remaining)
    for output in part.graph.output:
        if output.name == "scores":
            output.type.tensor_type.shape.dim[1].dim_value = len(remaining)
    return excerpt(part, ("logits", "scores"))


def columns(model: onnx.ModelProto, detectors: Sequence[str]) -> list[str]:
    """Return the tensor of each detector's column of `scores`. Raises BundleError where no Concat joins them."""
    if len(detectors) == 1:
        return ["scores"]
    joint = maker(model.graph, "scores")
    if joint.op_type != "Concat" or len(set(joint.input)) != len(detectors):
        raise BundleError(
            f"the program's scores come from {joint.op_type} of {len(joint.input)} tensors; "
            f"wanted a Concat of {len(detectors)} columns"
        )
    return list(joint.input)


def maker(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    for node in graph.node:
        if tensor in node.output:
            return node
    raise BundleError(f"nothing in the program computes {tensor}")


def ancestors(graph: onnx.GraphProto, tensors: Iterable[str]) -> set[str]:
    """Return the names of these tensors and of everything that they are computed from."""
    read = set(tensors)
    for node in reversed(graph.node):  # a graph is written in the order of its computation
        if read.intersection(node.output):
            read.update(node.input)
    return read


def parts(model: onnx.ModelProto, detectors: Sequence[str]) -> dict[str, str]:
    """Map each computed tensor to its purpose: forward, backward, variant rows, heads of one detector or of several."""
    graph = model.graph
    named = {output.name for output in graph.output}
    forward = ancestors(graph, ["logits"])
    backward = ancestors(graph, named & {"gradient"}) - forward
    rows = ancestors(graph, second_pass(graph, forward, backward)) - forward - backward
    own = {name: ancestors(graph, [column]) for name, column in zip(detectors, columns(model, detectors), strict=True)}
    found = {}
    for tensor in (name for node in graph.node for name in node.output):
        heads = [name for name, read in own.items() if tensor in read]
        passes = [name for name, read in ((FORWARD, forward), (BACKWARD, backward), (ROWS, rows)) if tensor in read]
        found[tensor] = (passes or (heads if len(heads) == 1 else [HEADS]))[0]
    return found


def second_pass(graph: onnx.GraphProto, forward: set[str], backward: set[str]) -> Iterator[str]:
    """Yield the results of the operators that use the model's own weights once more."""
    contents = {tensor.name: content(tensor) for tensor in graph.initializer}
    heavy = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
    weights = {
        contents[name]
        for node in graph.node
        if node.op_type in heavy and forward.intersection(node.output)
        for name in node.input
        if name in contents
    }
    for node in graph.node:
        again = any(contents.get(name) in weights for name in node.input)
        if node.op_type in heavy and again and not (forward | backward).intersection(node.output):
            yield from node.output


def content(tensor: TensorProto) -> tuple[object, ...]:
    """Return a key that is equal for equal numbers: two passes of one model may name its weights differently."""
    place = tuple(sorted((entry.key, entry.value) for entry in tensor.external_data))
    inline = onnx.numpy_helper.to_array(tensor).tobytes() if not place else b""
    return (tuple(tensor.dims), place, hashlib.sha256(inline).digest())


def depthwise(model: onnx.ModelProto) -> bool:
    """Tell whether a model has depthwise convolutions, which do little arithmetic for what they read."""
    graph = excerpt(model, ("logits",)).graph
    filters = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    groups = {
        node.input[1]: attribute.i
        for node in graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    }
    return any(
        count > 1 and filters.get(name, (0, 0))[1] == 1 and max(filters[name][2:]) > 1 for name, count in groups.items()
    )
