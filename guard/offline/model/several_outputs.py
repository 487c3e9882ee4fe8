"""Chooses the output to guard where an exported model gives several: in a tuple, a dictionary or a dataclass.

An output is named by the way to it, keys and places joined by dots: `logits`, `1`, `heads.main`. Where the wire has
another name for it, `--output-name WIRE=WAY` says both, as OUTPUT__1=1 for the second of a tuple.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

from guard.errors import ModelError
from guard.offline.model.onnx_import.other_inputs import OTHER_INPUT


def wire_and_way(name: str | None) -> tuple[str | None, str | None]:
    """Return an output's name on the wire, and the way to it in the model."""
    if name is None:
        return None, None
    wire, sign, way = name.partition("=")
    return wire, way if sign else wire


def ways(program: ExportedProgram) -> list[str]:
    """Return the way to each of an exported program's outputs, in their order; empty for a bare tensor."""
    spec = program.call_spec.out_spec
    if spec is None:
        return [""]
    paths, _ = tree_flatten_with_path(tree_unflatten(list(range(spec.num_leaves)), spec))
    return [".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in way) for way, _ in paths]


def choose_output(program: ExportedProgram, results: Any, way: str | None) -> tuple[fx.Node, str | None]:
    """Return the result that is meant, and the way to it where there was a choice.

    Raises:
        ModelError: there are several and none is named, or there is none of that name.
    """
    named = {
        path: node for path, node in zip(ways(program), tree_leaves(results), strict=True) if isinstance(node, fx.Node)
    }
    if not named:
        raise ModelError("the model gives no tensor; wanted a prediction, [item, class]")
    if len(set(named.values())) == 1:
        return next(iter(named.values())), None
    if way in named:
        return named[way], way
    scores = [path for path, node in named.items() if could_be_scores(node)]
    if way is None and len(scores) == 1:
        return named[scores[0]], scores[0]
    have = ", ".join(f"{path} {shape_text(node)}" for path, node in named.items())
    if way is None:
        raise ModelError(
            f"the model gives {len(named)} outputs ({have}); exactly one prediction can be guarded: say which with "
            "--output-name, and WIRE=NAME where the wire has another name for it"
        )
    raise ModelError(f"the model has no output {way!r}; --output-name can be: {have}")


def could_be_scores(node: fx.Node) -> bool:
    """Tell whether an output holds floats, [item] or [item, class]."""
    value = node.meta.get("val")
    return value is not None and value.is_floating_point() and value.ndim in (1, 2)


def shape_text(node: fx.Node) -> str:
    sizes = getattr(node.meta.get("val"), "shape", ())
    return f"[{', '.join(str(size) if isinstance(size, int) else 'item' for size in sizes)}]"


def fields_of(result: Any) -> type | None:
    """Return the class of a result that is a plain dataclass, which torch.export must be told of."""
    plain = hasattr(result, "__dataclass_fields__") and not isinstance(result, Mapping)
    return type(result) if plain else None


def single_path(program: ExportedProgram) -> fx.GraphModule:
    """Return the exported graph with its one input and its one output. Raises ModelError where it has several."""
    return one_output(program, None)[0]


def one_output(program: ExportedProgram, way: str | None) -> tuple[fx.GraphModule, str | None]:
    """Return the exported graph to one output, without guards and hooks, and the way to it where there was a choice.

    Raises:
        ModelError: the model has several inputs, or several outputs of which none is chosen.
    """
    module = program.module()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            continue  # the shape guards that torch.export adds
        if node.op == "output":
            result, way = choose_output(program, node.args[0], way)
            graph.output(copies[result])
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()  # what other outputs take
    used = [copies[node].name for node in inputs if copies[node].users]
    if len(inputs) > 1 and len(used) != 1:
        names = ", ".join(used[:12]) or "none"
        raise ModelError(
            f"the chosen output depends on {len(used)} inputs ({names}); exactly one can be guarded{OTHER_INPUT}"
        )
    for node in inputs if len(inputs) > 1 else ():
        if not copies[node].users:
            graph.erase_node(copies[node])
    return fx.GraphModule(module, graph), way
