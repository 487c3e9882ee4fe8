"""Values as bytes for another process: as pickle makes them, but torch's graphs with the names and shapes of all nodes.

Rule 1: what is read back computes the same bits, and can be compiled as the original can.
Rule 2: only bytes that this program wrote are read, never a file: pickle runs what it reads.

How it works. Pickle writes an `fx.GraphModule` as source text, and what reads it back traces that text anew: nodes get
other names, and lose the shapes that `torch.export` recorded. Here a graph is written node by node. Recorded shapes
hang on the symbols of the process that made them, so they are not written: they are propagated again from the inputs,
whose free axes are free again.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_aggregate

from guard.errors import ConfigError, first_line

EXAMPLE_ITEMS = 2  # along an axis that is free: torch takes sizes of 0 and 1 for fixed
SHAPE, STACK = "val", "nn_module_stack"  # what a node's record says of its value, and of the layers that it lies in
KEPT_KINDS = (str, int, float, bool, tuple)


def to_bytes(value: object) -> bytes:
    """Return a value as bytes that `from_bytes` reads in any process with the same packages.

    Raises ConfigError where no other process could read it.
    """
    stream = io.BytesIO()
    try:
        GraphPickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"--ray: something cannot be sent to a worker ({first_line(error)}); wanted attacks, detectors and models "
            "whose functions and classes stand in installed modules"
        ) from error
    return stream.getvalue()


def from_bytes(content: bytes | memoryview) -> Any:
    """Return the value that `to_bytes` was given."""
    return pickle.loads(content)  # noqa: S301 - written by this program, and sent through its own cluster


class GraphPickler(pickle.Pickler):
    """Pickler that writes graphs node by node."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, fx.GraphModule):
            return rebuilt, written(value)
        if isinstance(value, torch._ops.OpOverload):
            return operator_named, (value._schema.name, value._overloadname)
        return NotImplemented


@dataclass(frozen=True)
class NodePlace:
    """Reference to an earlier node of the same graph."""

    index: int


@dataclass(frozen=True)
class FreeShape:
    """Shape of an input: its sizes, None where they are free, and its type."""

    sizes: tuple[int | None, ...]
    kind: torch.dtype


@dataclass(frozen=True)
class NodeRecord:
    """Record of a graph's node, with references in the place of other nodes."""

    op: str
    name: str
    target: Any
    arguments: Any
    keywords: Any
    noted: dict[str, Any]
    shape: FreeShape | Tensor | bool  # of an input; a fixed value; whether there is one to be propagated


def written(module: fx.GraphModule) -> tuple[dict[str, Any], list[NodeRecord], bool]:
    """Return a graph module's tensors and modules, its nodes, and whether it is in training mode."""
    index = {node: place for place, node in enumerate(module.graph.nodes)}

    def referred(leaf: Any) -> Any:
        return NodePlace(index[leaf]) if isinstance(leaf, fx.Node) else leaf

    def referring(value: Any) -> Any:
        return map_aggregate(value, referred)

    records = [
        NodeRecord(
            node.op,
            node.name,
            node.target,
            referring(node.args),
            referring(node.kwargs),
            noted(node),
            shape_of(node),
        )
        for node in module.graph.nodes
    ]
    held = {name: vars(module)[name] for name in ("_parameters", "_buffers", "_modules")}
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Tensor) or (isinstance(value, nn.Module) and name not in held)
    }
    return {**held, "own": own}, records, module.training


def noted(node: fx.Node) -> dict[str, Any]:
    """Return what a node notes beside its shape: plain values, and the paths of the layers that it lies in."""
    found = {
        key: value
        for key, value in node.meta.items()
        if isinstance(value, KEPT_KINDS) or type(value).__module__.partition(".")[0] == "guard"
    }
    if stack := node.meta.get(STACK):
        found[STACK] = {key: (path, str(kind)) for key, (path, kind) in stack.items()}
    return found


def shape_of(node: fx.Node) -> FreeShape | Tensor | bool:
    value = node.meta.get(SHAPE)
    if node.op == "placeholder" and isinstance(value, Tensor):
        sizes: list[Any] = list(value.shape)  # of int and SymInt, which the type checker takes for int
        return FreeShape(tuple(size if isinstance(size, int) else None for size in sizes), value.dtype)
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return value
    return value is not None


def rebuilt(held: dict[str, Any], records: list[NodeRecord], training: bool) -> fx.GraphModule:  # noqa: FBT001 - pickle's
    """Return the graph module of what `written` returned."""
    root, graph = nn.Module(), fx.Graph()
    for name in ("_parameters", "_buffers", "_modules"):
        vars(root)[name].update(held[name])
    vars(root).update(held["own"])
    nodes: list[fx.Node] = []

    def found(leaf: Any) -> Any:
        return nodes[leaf.index] if isinstance(leaf, NodePlace) else leaf

    for record in records:
        arguments, keywords = (map_aggregate(value, found) for value in (record.arguments, record.keywords))
        node = graph.create_node(record.op, record.target, arguments, keywords, name=record.name)
        node.meta.update(record.noted)
        nodes.append(node)
    module = fx.GraphModule(root, graph)
    propagate(module, list(zip(nodes, records, strict=True)))
    return module.train(training)


def propagate(module: fx.GraphModule, nodes: list[tuple[fx.Node, NodeRecord]]) -> None:
    """Record the shape of each node that had one, from those of the inputs on."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    for node, record in nodes:
        if isinstance(record.shape, Tensor):
            node.meta[SHAPE] = record.shape
        elif record.shape is not False:
            node.meta[SHAPE] = propagated(module, node, record, mode)


def propagated(module: fx.GraphModule, node: fx.Node, record: NodeRecord, mode: FakeTensorMode) -> Any:
    if isinstance(record.shape, FreeShape):
        return free(record.shape, mode)
    if node.op == "get_attr":
        held: Any = module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        return mode.from_tensor(held, static_shapes=True)
    arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda operand: operand.meta[SHAPE])
    target = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    with mode, enable_python_dispatcher(), torch.no_grad():
        return target(*arguments, **keywords)  # type: ignore[operator]


def free(shape: FreeShape, mode: FakeTensorMode) -> Tensor:
    """Return an input without values, whose unknown sizes are one free symbol."""
    example = torch.empty([EXAMPLE_ITEMS if size is None else size for size in shape.sizes], dtype=shape.kind)
    sizes = [DimDynamic.DYNAMIC if size is None else DimDynamic.STATIC for size in shape.sizes]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)  # generic without need
    return mode.from_tensor(example, symbolic_context=context)


def operator_named(name: str, overload: str) -> Any:
    """Return torch's operator of this name, such as aten::relu and default."""
    space, _, operator = name.partition("::")
    return getattr(getattr(getattr(torch.ops, space), operator), overload or "default")
