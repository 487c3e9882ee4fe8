"""Reads an ONNX file as one message: weights that lie beside it are included, local functions written out."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError

from guard.errors import ModelError, first_line

MIN_OPSET_VERSION = 7  # the oldest that ONNX Runtime keeps: before it, operators broadcast by other rules


def read_onnx(file: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file, without the `weights` that lie beside it where they are not asked for.

    Raises:
        ModelError: it is missing, damaged, no ONNX, or its weights are not where it says.
    """
    if not file.is_file():
        raise ModelError(f"{file} does not exist; wanted an .onnx file")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"{file} is no ONNX model: it is damaged, cut short, or of another kind") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ModelError(f"{file} is no ONNX model: it holds no operators, no outputs or no operator set")
    refuse_versions(file, model)
    if not weights:
        return model
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"{file} keeps weights in a file beside it that cannot be read: {first_line(error)}; "
            "put that file back under the name it had"
        ) from error
    put_in_order(model.graph)
    return inlined(file, model) if model.functions else model


def inlined(file: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its local functions written out, in the model's own operator set.

    Raises ModelError for a function of another set that cannot be converted to it.
    """
    own = opset_of(model)
    try:
        if any(opset_of(function) not in (None, own) for function in model.functions):
            model = onnx.shape_inference.infer_shapes(model)  # the converter wants to know the types
        written = onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # onnx's converter raises its own untyped family
        raise of_another_set(file, model, f" ({first_line(error).rpartition('failed: ')[2]})") from error
    if written.functions:
        raise of_another_set(file, written)
    return written


def opset_of(model: onnx.ModelProto | onnx.FunctionProto) -> int | None:
    """Return the version of ONNX's own operators that a model or a function is written in."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def of_another_set(file: Path, model: onnx.ModelProto, why: str = "") -> ModelError:
    """Return the error for a local function whose operator set cannot be converted to the model's."""
    own, others = (
        ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in sets)
        for sets in (model.opset_import, model.functions[0].opset_import)
    )
    return ModelError(
        f"{file}: the local function {model.functions[0].domain}.{model.functions[0].name} has the operator sets "
        f"{others}, the model {own}, and onnx cannot convert one to the other{why}; export both with the same set "
        "(opset_version=20), or write the functions out where the model was made "
        "(onnx.inliner.inline_local_functions)"
    )


def put_in_order(graph: onnx.GraphProto) -> None:
    """Sort nodes so that each follows what it reads: converters append some at the end, and ONNX Runtime sorts them.

    What reads a tensor that nothing gives stays at the end.
    """
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    read = [{makers[name] for name in reads_of(node) if name in makers} for node in graph.node]
    if all(source < place for place, sources in enumerate(read) for source in sources):
        return
    waiting = [len(sources) for sources in read]
    readers: list[list[int]] = [[] for _ in read]
    for place, sources in enumerate(read):
        for source in sources:
            readers[source].append(place)
    ready = [place for place, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for place in readers[order[-1]]:
            waiting[place] -= 1
            if not waiting[place]:
                heappush(ready, place)
    order += sorted(set(range(len(read))) - set(order))
    nodes = [graph.node[place] for place in order]
    sorted_graph = onnx.GraphProto(node=nodes)
    graph.ClearField("node")
    graph.node.extend(sorted_graph.node)


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those within its branches and loops included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from reads_of(inner)


def refuse_versions(file: Path, model: onnx.ModelProto) -> None:
    """Raise ModelError for an operator set or a format that the installed onnx does not know."""
    newest = onnx.defs.onnx_opset_version()
    opset = opset_of(model) or newest
    if not MIN_OPSET_VERSION <= opset <= newest:
        raise ModelError(
            f"{file} has operator set {opset}; wanted {MIN_OPSET_VERSION} to {newest}: export it with opset_version=20 "
            "or convert it with onnx.version_converter"
        )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{file} has format (IR) version {model.ir_version}; this onnx reads up to {onnx.IR_VERSION}: update onnx "
            "and onnxruntime, or save the model with an older ir_version"
        )
