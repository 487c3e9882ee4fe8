"""Writes the branches of an If as nodes of the graph itself, each under the condition on which it runs.

Rule 1. Nodes under a condition run only where it holds: a branch that is not taken may be impossible to compute.

Example: torch's older exporter writes `x.squeeze(1)` on sizes that it does not know as If(sizes[1] == 1) with a Squeeze
in one branch and an Identity in the other. What becomes of it is Squeeze [condition], Identity [not condition], and one
If that passes on the result of whichever ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from guard.offline.model.onnx_import.graph_node import Condition


@dataclass(frozen=True)
class Conditional:
    """A node of the file, and the conditions under which it runs."""

    proto: onnx.NodeProto
    when: tuple[Condition, ...] = ()


def flattened(
    nodes: Sequence[onnx.NodeProto], when: tuple[Condition, ...] = (), names: Mapping[str, str] | None = None
) -> Iterator[Conditional]:
    """Yield all nodes in order; those of a branch carry names of their own, so that no two branches share one."""
    for proto in nodes:
        named = renamed(proto, names or {})
        if named.op_type != "If" or named.domain:
            yield Conditional(named, when)
            continue
        results: list[list[str]] = []
        for holds, branch in sorted(branches_of(named).items(), reverse=True):
            prefix = f"{named.output[0]} if {str(holds).lower()}: "
            inner = dict(names or {}) | {name: prefix + name for name in made_in(branch)}
            under = (*when, (named.input[0], holds))
            for tensor in branch.initializer:
                value = helper.make_node("Constant", [], [inner[tensor.name]], value=tensor)
                yield Conditional(value, under)
            yield from flattened(branch.node, under, inner)
            results.append([inner.get(value.name, value.name) for value in branch.output])
        for output, first, second in zip(named.output, *results, strict=True):
            yield Conditional(helper.make_node("If", [named.input[0], first, second], [output], named.name), when)


def branches_of(proto: onnx.NodeProto) -> dict[bool, onnx.GraphProto]:
    graphs = {attribute.name: attribute.g for attribute in proto.attribute}
    return {True: graphs["then_branch"], False: graphs["else_branch"]}


def made_in(branch: onnx.GraphProto) -> list[str]:
    return [*(tensor.name for tensor in branch.initializer), *(name for node in branch.node for name in node.output)]


def renamed(proto: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    if not names:
        return proto
    copy = onnx.NodeProto()
    copy.CopyFrom(proto)
    copy.ClearField("input")
    copy.ClearField("output")
    copy.input.extend(names.get(name, name) for name in proto.input)
    copy.output.extend(names.get(name, name) for name in proto.output)
    return copy
