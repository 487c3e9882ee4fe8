"""Runs the nodes of an ONNX graph one after the other in torch, as the module that torch.export is given.

Rule 1. Input is what the rest of the guard works on: float32 items with channels first, in the values of the wire.
Rule 2. Sizes are carried as Python numbers and symbols (`Sizes`), tensors as tensors; an operator on sizes alone is
done in `shape_arithmetic`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.axes import CHANNELS_LAST, to_wire
from guard.errors import GuardError, ModelError, first_line
from guard.offline.model.onnx_import.batch_axis import ROW_WISE, freed, one_along, one_row
from guard.offline.model.onnx_import.graph import Graph
from guard.offline.model.onnx_import.graph_node import OTHERWISE, Node
from guard.offline.model.onnx_import.operator_table import operator_of, unknown
from guard.offline.model.onnx_import.operators_places import counts_items, fixed_number, freed_places, runs_over_items
from guard.offline.model.onnx_import.operators_recurrent import INITIAL_STATES, RECURRENT
from guard.offline.model.onnx_import.refusals import FLOW
from guard.offline.model.onnx_import.shape_arithmetic import SIZES, are_whole, is_fixed, is_symbol, whole

FREE_BATCH = "export the file with a dynamic batch axis"
INTEGERS = "iu"  # kinds of constants that can be sizes; a constant mask is a tensor


class Step(nn.Module):
    """A node as a module, with those of its operands that are constants."""

    def __init__(self, node: Node, graph: Graph) -> None:
        super().__init__()
        self.node = node
        self.operator = operator_of(node, graph.constants)
        if self.operator is None and node.kind not in SIZES and node.kind != "If":
            raise unknown(node)
        self.batch = graph.batch
        self.seen: tuple[int, ...] | None = None  # sizes of the first operand with the file's own number of items
        self.fixed: dict[int, NDArray[Any]] = {}
        for place, name in enumerate(node.inputs):
            if name in graph.constants:
                self.fixed[place] = value = self.for_any_item(place, graph.constants[name])
                if place not in self.settings:
                    self.register_buffer(f"operand_{place}", tensor_of(value))

    @property
    def settings(self) -> tuple[int, ...]:
        return self.operator.settings if self.operator else ()

    def for_any_item(self, place: int, value: NDArray[Any]) -> NDArray[Any]:
        """Return a constant once, where the file repeats it for each of its items."""
        if self.node.kind in RECURRENT and place in INITIAL_STATES:
            return one_along(value, self.batch or 1, 0 if self.node.get("layout", 0) else 1)
        if self.node.kind in ("ScatterElements", "ScatterND") and place == 2 and self.batch:
            for axis in range(value.ndim):
                value = one_along(value, self.batch, axis)  # the operator repeats it as often as it takes
        return one_row(value, self.batch or 1) if self.node.kind in ROW_WISE else value

    def forward(self, *given: Any) -> tuple[Any, ...]:
        """Run the node on its operands in its order, None for constants and what is left out."""
        if self.node.kind == "If":
            holds = truth(given[0])
            if holds is None:
                raise self.node.refuse(f"runs or not as the input's values decide: {FLOW.why}", FLOW.remedy)
            place = 1 if holds else 2
            return (self.fixed.get(place, given[place]),)
        result = self.on_sizes(given) if self.is_about_sizes(given) else self.on_tensors(given)
        return result if isinstance(result, tuple) else (result,)

    def is_about_sizes(self, given: tuple[Any, ...]) -> bool:
        if self.node.kind not in SIZES or any(isinstance(value, Tensor) for value in given):
            return False
        if self.node.kind == "ConstantOfShape":
            return is_fixed(given[0])
        if self.node.kind == "ScatterND":  # on masks, it is one of tensors
            return all(are_whole(self.fixed.get(place, value)) for place, value in enumerate(given))
        data = [place for place, value in enumerate(given) if value is not None and place not in self.settings]
        return bool(data) or self.fixed[0].dtype.kind in INTEGERS

    def on_sizes(self, given: tuple[Any, ...]) -> Any:
        return SIZES[self.node.kind](self.node, *(self.fixed.get(place, value) for place, value in enumerate(given)))

    def on_tensors(self, given: tuple[Any, ...]) -> Any:
        if self.operator is None:
            raise unknown(self.node)
        operands = [self.operand(place, value) for place, value in enumerate(given)]
        if not torch.compiler.is_exporting():
            self.seen = tuple(getattr(operands[0], "shape", ()))
        elif self.batch is None and 1 in self.fixed and counts_items(self.node, operands):
            raise fixed_number(self.node)
        elif self.batch is not None and self.node.kind == "Reshape":
            operands[1] = self.free_target(*operands)
        elif self.batch is not None and runs_over_items(self.node, operands):
            operands[1] = freed_places(self.node, self.seen or (), operands[1].astype(np.int64), self.batch)
        return self.operator.function(self.node, *operands)

    def operand(self, place: int, value: Any) -> Any:
        if place in self.settings:
            if isinstance(value, Tensor) and self.node.kind == "Gather" and 0 in self.fixed:
                return value  # codes, by which a table's rows are looked up
            if isinstance(value, Tensor):
                raise self.node.refuse(f"its operand {self.node.inputs[place]!r} is computed from the input's values")
            return self.fixed.get(place, value)
        if place in self.fixed:
            return getattr(self, f"operand_{place}")
        return number_of(self.node, value) if isinstance(value, np.ndarray) else value

    def free_target(self, x: Tensor, sizes: Any) -> Any:
        """Return the sizes to reshape to, with the batch free where the file has a number."""
        if not is_fixed(sizes):
            return sizes
        target = whole(sizes)
        symbols = [axis for axis, size in enumerate(x.shape) if is_symbol(size)]
        if len(symbols) != 1 or self.seen is None or self.batch is None:
            return sizes
        found = freed(self.seen, symbols[0], target, self.batch)
        if found is None:
            raise self.node.refuse(
                f"reshapes {list(self.seen)} to {target}, and where the batch of {self.batch} goes cannot be told",
                FREE_BATCH,
            )
        return np.asarray(found)


def tensor_of(value: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))


def number_of(node: Node, sizes: NDArray[Any]) -> Any:
    """Return sizes that meet a tensor: one as a number, several as a tensor where none is the batch."""
    if sizes.size == 1:
        return sizes.item()
    if is_fixed(sizes):
        return torch.tensor(sizes.tolist())
    raise node.refuse(f"computes with the number of items ({whole(sizes)})")


class Replay(nn.Module):
    """An ONNX graph as a module; `layout` is the order of its input's axes, where not the guard's."""

    def __init__(self, graph: Graph, *, layout: str | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.layout = layout
        self.steps = nn.ModuleList([Step(node, graph) for node in graph.nodes])

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Any] = {
            "": None,
            self.graph.input: images.permute(to_wire(self.layout, images.ndim))
            if self.layout in CHANNELS_LAST
            else images,
        }
        for node, step in zip(self.graph.nodes, self.steps, strict=True):
            if not all(truth(self.known(values, name)) is holds for name, holds in node.when):
                continue
            operands = [self.value(values, node, name) for name in node.inputs]
            try:
                results = step(*operands)
            except GuardError:
                raise
            except Exception as error:  # torch raises many kinds for operands that do not fit
                raise ModelError(
                    f"{node} cannot be computed on {' and '.join(map(described, operands)) or 'nothing'}: "
                    f"{first_line(error)}; {OTHERWISE if self.graph.batch is None else FREE_BATCH}"
                ) from error
            values.update((name, value) for name, value in zip(node.outputs, results, strict=False) if name)
        result: Tensor = self.value(values, node, self.graph.output)
        return result

    def value(self, values: dict[str, Any], node: Node, name: str) -> Any:
        """Return a tensor or sizes by name, None for a constant. Raises ModelError where no node has computed it."""
        if name not in values and name not in self.graph.constants and node.kind != "If":  # of which one branch ran
            raise node.refuse(f"its {name!r} is a further result of a node, which the importer does not compute")
        return values.get(name)

    def known(self, values: dict[str, Any], name: str) -> Any:
        return self.graph.constants.get(name, values.get(name))


def truth(condition: Any) -> bool | None:
    """Return whether a condition on sizes holds; None for one that the input's values decide."""
    values = np.ravel(condition) if isinstance(condition, np.ndarray) else np.empty(0)
    return bool(values[0]) if values.size == 1 and isinstance(values[0], bool | np.bool_) else None


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "a constant" if value is None else f"sizes {np.ravel(value).tolist()}"
