"""What a model's file says of its input: the sizes of one item, before anything is opened for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guard.axes import SERIES
from guard.offline.model.onnx_import.graph import read_graph
from guard.offline.model.onnx_import.series_layout import series_layout
from guard.offline.model.open_model import load_exported, unknown_kind
from guard.offline.model.series_program import layout_read

Sizes = tuple[int | None, ...]  # one item's, None where the file leaves one open


@dataclass(frozen=True)
class DeclaredInput:
    """The sizes of one item as a model's file declares them; none are known of a `module:factory`."""

    item: Sizes | None
    either: bool  # whether channels may be first or last in it; else they are first
    layout: str | None = None  # of series, where a layer says which axis has the channels


def declared_input(model: str, input_name: str | None = None, output_name: str | None = None) -> DeclaredInput:
    """Read what a model's file declares. Raises ModelError where it cannot be read."""
    if model.endswith(".onnx"):
        graph = read_graph(Path(model), input_name=input_name, output_name=output_name)
        return DeclaredInput(graph.sizes[1:], True, series_layout(graph))
    if not model.endswith(".pt2"):
        if ":" not in model:
            raise unknown_kind(model)
        return DeclaredInput(None, False)
    program = load_exported(Path(model))
    inputs = set(program.graph_signature.user_inputs)
    found = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(found) != 1:
        return DeclaredInput(None, False)  # refused with its own words when the model is opened
    item = tuple(size if isinstance(size, int) else None for size in found[0][1:])
    series = len(item) == len(SERIES.names)
    return DeclaredInput(item, series, layout_read(program.graph) if series else None)
