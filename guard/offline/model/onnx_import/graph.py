"""An ONNX file as a short list of nodes: one input, one output, and only what lies between.

Rule 1. What does not depend on the input is a constant: it is computed here, by ONNX's own reference.
Rule 2. A tensor's name is its name in the file; that is what taps are called by.
Rule 3. All is float32: a file that computes in fewer bits is read in its float form, and says so in `formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from guard.axes import BY_COUNT
from guard.errors import ModelError
from guard.offline.model.onnx_import.branches import Conditional, flattened
from guard.offline.model.onnx_import.choice import chosen, chosen_output
from guard.offline.model.onnx_import.class_names import class_names, class_numbers
from guard.offline.model.onnx_import.defined_functions import with_functions_written_out
from guard.offline.model.onnx_import.file import read_onnx
from guard.offline.model.onnx_import.float_form import float_form
from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.number_formats import name_of, refuse_formats, refuse_type, remedy_for
from guard.offline.model.onnx_import.operator_table import FUNCTIONS
from guard.offline.model.onnx_import.other_inputs import OTHER_INPUT, evaluation_settings
from guard.offline.model.onnx_import.refusals import refuse_closed
from guard.offline.model.onnx_import.sequences import KINDS as SEQUENCES
from guard.offline.model.onnx_import.sequences import without_sequences
from guard.offline.model.onnx_import.shape_arithmetic import SIZES

Array = NDArray[Any]
DATATYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.UINT8: "UINT8",
    TensorProto.DOUBLE: "FP64",
}
ONNX_DOMAINS = ("", "ai.onnx")
COLUMNS = (
    ": it takes each column of a table by itself; fit the pipeline on one array of floats, columns named by number, "
    "and export it with one input [item, feature], as to_onnx(model, X[:1].astype(numpy.float32)) writes it"
)


@dataclass(frozen=True)
class Graph:
    """An ONNX graph: nodes in an order in which they can run, from the one input to the one output."""

    file: Path
    input: str
    datatype: str  # FP32 | FP16 | UINT8, on the wire
    sizes: tuple[int | None, ...]  # of the input, batch first; None where the file leaves it open
    output: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array] = field(repr=False)
    formats: tuple[str, ...] = ()  # of fewer bits, that the file computes in
    float_file: bytes | None = field(default=None, repr=False)  # the file's float form, where it is not the file
    class_names: tuple[str, ...] = ()  # in the order of the scores, where the file holds them
    class_numbers: tuple[int, ...] = ()  # labels in that order, where they do not run from 0

    @property
    def batch(self) -> int | None:
        """The number of items that the file is fixed to; None where any number will do."""
        return self.sizes[0]


def read_graph(file: Path, *, input_name: str | None = None, output_name: str | None = None) -> Graph:
    """Read a file's graph. Raises ModelError: it cannot be read, or does not show which input or output is meant."""
    served = read_onnx(file)
    form = float_form(served)
    model = with_functions_written_out(form.model, FUNCTIONS.keys() | SIZES.keys())
    output = chosen_output(file, model.graph.output, output_name)
    nodes, constants = needed(file, model, output)
    refuse_closed(file, nodes)
    refuse_output(file, model, output, nodes)
    constants |= evaluation_settings([value.name for value in model.graph.input if value.name not in constants], nodes)
    fold(nodes, constants)
    nodes = without_sequences(nodes, constants)
    refuse_formats(nodes, constants)
    read = {name for node in nodes for name in needs_of(node)} | {output}
    inputs = [value for value in model.graph.input if value.name not in constants]
    used = [value for value in inputs if value.name in read]
    if len(used) != 1:
        names = ", ".join(value.name for value in used[:12]) or "none"
        raise ModelError(
            f"{file}: output {output!r} depends on {len(used)} inputs ({names}{', …' if used[12:] else ''}); exactly "
            f"one can be guarded{remedy_of(used)}"
        )
    if input_name not in (None, used[0].name):
        chosen(file, "input", [value.name for value in used], input_name)
    name = used[0].name
    (wire,) = [value for value in served.graph.input if value.name == name]
    datatype, sizes = input_form(file, wire)
    kept = {name: value for name, value in constants.items() if name in read}
    float_file = form.model.SerializeToString() if form.formats else None
    return Graph(
        file,
        name,
        datatype,
        sizes,
        output,
        tuple(nodes),
        kept,
        form.formats,
        float_file,
        class_names(model),
        class_numbers(model),
    )


def remedy_of(used: Sequence[onnx.ValueInfoProto]) -> str:
    """Return what to do about an output that depends on these inputs."""
    if not used:
        return ": name another output with --output-name"
    return COLUMNS if all(map(is_column, used)) else OTHER_INPUT


def is_column(value: onnx.ValueInfoProto) -> bool:
    """Tell whether an input is one column of a table [item, 1], as skl2onnx writes those of a data frame."""
    sizes = value.type.tensor_type.shape.dim
    return len(sizes) == 2 and sizes[1].dim_value == 1


def refuse_output(file: Path, model: onnx.ModelProto, output: str, nodes: list[Node]) -> None:
    """Raise ModelError for an output of text, or of sequences other than ZipMap's, which are scores by class."""
    (value,) = (value for value in model.graph.output if value.name == output)
    where = f"{file}: output {output!r}"
    if nodes and nodes[-1].kind != "ai.onnx.ml.ZipMap":
        refuse_type(where, value)
    if value.type.tensor_type.elem_type == TensorProto.STRING:
        raise ModelError(f"{where} is text; wanted scores: name the output of probabilities with --output-name")


def needed(file: Path, model: onnx.ModelProto, output: str) -> tuple[list[Node], dict[str, Array]]:
    """Return the nodes on which the output depends, in the file's order, and the file's tensors."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = next((opsets[domain] for domain in ONNX_DOMAINS if domain in opsets), 0)
    known = {*constants, *(value.name for value in model.graph.input)}
    known.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    made: list[Node] = []
    for conditional in flattened(model.graph.node):
        node = node_of(conditional, opset)
        if missing := [name for name in node.inputs if name and name not in known]:
            raise ModelError(f"{file} is damaged: {node} reads {missing[0]!r}, which nothing before it gives")
        known.update(node.outputs)
        if any(tensor.values.name in node.inputs for tensor in model.graph.sparse_initializer):
            raise node.refuse("has sparse weights", "write them as dense tensors (numpy_helper.from_array)")
        made.append(node)
    wanted = {output}
    kept = []
    for node in reversed(made):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(needs_of(node))
    return kept[::-1], constants


def needs_of(node: Node) -> list[str]:
    return [*filter(None, node.inputs), *(name for name, _ in node.when)]


def node_of(conditional: Conditional, opset: int) -> Node:
    proto = conditional.proto
    kind = proto.op_type if proto.domain in ONNX_DOMAINS else f"{proto.domain}.{proto.op_type}"
    attributes = {a.name: plain_attribute(helper.get_attribute_value(a)) for a in proto.attribute}
    return Node(kind, proto.name, tuple(proto.input), tuple(proto.output), attributes, opset, conditional.when)


def plain_attribute(value: Any) -> Any:
    """Return an attribute's value with tensors as arrays and bytes as text."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [plain_attribute(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value


def fold(nodes: list[Node], constants: dict[str, Array]) -> None:
    """Compute every node all of whose operands are known, and take it off the list."""
    for node in list(nodes):
        if node.kind == "If" and node.inputs[0] in constants:
            nodes[nodes.index(node)] = node = passed_on(node, taken=bool(constants[node.inputs[0]]))
        if any(name in constants and bool(constants[name]) is not holds for name, holds in node.when):
            nodes.remove(node)
            continue
        fixed = all(not name or name in constants for name in node.inputs)
        if fixed and "." not in node.kind and not node.kind.startswith("Random") and node.kind not in SEQUENCES:
            try:
                constants.update(zip(node.outputs, computed(node, constants), strict=False))
            except ModelError:
                if not node.when:  # else it may be in a branch that is not taken
                    raise
                continue
            nodes.remove(node)


def passed_on(node: Node, *, taken: bool) -> Node:
    """Return an If whose condition is known as the identity that it is."""
    return replace(node, kind="Identity", inputs=(node.inputs[1 if taken else 2],))


def computed(node: Node, constants: Mapping[str, Array]) -> Iterable[Array]:
    """Compute what one node gives on fixed operands, by ONNX's reference evaluator."""
    names = [name for name in dict.fromkeys(node.inputs) if name]
    outputs = [name for name in node.outputs if name]
    attributes = {
        name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }
    proto = helper.make_node(node.kind, list(node.inputs), list(node.outputs))
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    graph = helper.make_graph(
        [proto],
        "constant",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(constants[n].dtype), None) for n in names],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    try:
        found = ReferenceEvaluator(model).run(outputs, {name: constants[name] for name in names})
    except Exception as error:  # the reference raises whatever numpy and its own checks raise
        raise node.refuse(f"it cannot be computed ahead: {(str(error).splitlines() or ['?'])[0]}") from error
    results = iter(found)
    return [np.asarray(next(results)) if name else np.empty(0) for name in node.outputs]


def input_form(file: Path, value: onnx.ValueInfoProto) -> tuple[str, tuple[int | None, ...]]:
    """Return datatype and sizes of the input. Raises ModelError for what the guard cannot read on the wire."""
    refuse_type(f"{file}: input {value.name!r}", value)
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATATYPES:
        raise ModelError(
            f"{file}: input {value.name!r} is {name_of(tensor.elem_type)}; wanted FLOAT (float32), DOUBLE, FLOAT16 or "
            f"UINT8: {remedy_for(tensor.elem_type)}"
        )
    sizes = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)
    if len(sizes) - 1 not in BY_COUNT:
        raise ModelError(
            f"{file}: input {value.name!r} has {len(sizes)} axes; wanted images [item, channel, height, width] or "
            "[item, height, width, channel], series [item, channel, time] or [item, time, channel], or vectors "
            "[item, feature]"
        )
    return DATATYPES[tensor.elem_type], sizes
