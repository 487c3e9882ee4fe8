"""Series models from torch: the order of their axes, and the same program from series with channels first.

How it works. A module says nowhere whether it takes [item, channel, time] or [item, time, channel], but its first layer
does: a convolution has channels on axis 1, a recurrent layer on its last. Where no layer tells, the data's order is
taken for the model's, which is how the two were made for each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from guard.axes import CHANNELS_LAST, SERIES, from_wire, to_wire
from guard.errors import ModelError

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv1d.default, aten.conv1d.padding, aten.convolution.default, aten.batch_norm.default}
RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
EACH_ALONE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.to.dtype,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.relu.default,
    aten.pad.default,
}


def layout_read(graph: fx.Graph) -> str | None:
    """Return the order of axes that a graph's first layer takes its series in; None where no layer says it."""
    known: dict[fx.Node, list[int]] = {}  # which axes of the input a node's axes are
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = [0, 1, 2] if not any(known.values()) and takes_three(node) else []
            continue
        operand = next(iter(node.args), None)
        given = known.get(operand) if isinstance(operand, fx.Node) else None
        if not given:
            continue
        if node.target in CONVOLUTIONS or node.target in RECURRENT:
            channels = given[1 if node.target in CONVOLUTIONS else -1]
            return {1: SERIES.layouts[0], 2: SERIES.layouts[1]}.get(channels)
        known[node] = moved(node, given)
    return None


def takes_three(node: fx.Node) -> bool:
    """Tell whether a placeholder is the input of a series model: weights are placeholders too, of fixed sizes."""
    shape: Any = getattr(node.meta.get("val"), "shape", ())
    return len(shape) == len(SERIES.names) + 1 and not isinstance(shape[0], int)


def moved(node: fx.Node, given: list[int]) -> list[int]:
    """Return which axes of the input a node's axes are; none where they are others."""
    if node.target in EACH_ALONE:
        return given
    if node.target is aten.permute.default:
        return [given[int(axis)] for axis in node.args[1]]  # type: ignore[union-attr,arg-type]
    if node.target in (aten.transpose.int, aten.swapaxes.default):
        found = list(given)
        first, second = (int(axis) for axis in node.args[1:3])  # type: ignore[arg-type]
        found[first], found[second] = found[second], found[first]
        return found
    return []


def without_recurrence(program: ExportedProgram) -> ExportedProgram:
    """Return the same program with its recurrent layers written out step by step; others are left as they are."""
    if not any(node.target in RECURRENT for node in program.graph.nodes):
        return program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
            written: ExportedProgram = program.run_decompositions(torch._decomp.get_decompositions(list(RECURRENT)))
    except Exception as error:  # torch's failures have no common type
        raise ModelError(
            f"a recurrent layer cannot be written out step by step ({error}); hand over the model as .onnx"
        ) from error
    return written


def from_channels_first(module: fx.GraphModule, layout: str) -> fx.GraphModule:
    """Return a graph that takes items with channels first, of one that takes them in a layout."""
    if layout not in CHANNELS_LAST:
        return module
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    value, readers = start.meta["val"], list(start.users)
    with module.graph.inserting_after(start):
        turned = module.graph.call_function(aten.permute.default, (start, list(to_wire(layout, value.ndim))))
    turned.meta["val"] = value
    start.meta["val"] = value.permute(from_wire(layout, value.ndim))
    for reader in readers:
        reader.replace_input_with(start, turned)
    module.recompile()
    return module


def first_that_works(layouts: tuple[str, ...], export: Callable[[str], ExportedProgram]) -> tuple[str, ExportedProgram]:
    """Export a module for the first order of axes that it takes and that its first layer does not contradict.

    Raises ModelError as the export for the first order does, where none works.
    """
    failures: list[ModelError] = []
    found: dict[str, ExportedProgram] = {}
    for layout in layouts:
        try:
            found[layout] = export(layout)
        except ModelError as error:
            failures.append(error)
            continue
        if len(layouts) == 1 or layout_read(found[layout].graph) in (None, layout):
            return layout, found[layout]
    if found:
        return next(iter(found.items()))
    raise failures[0]
