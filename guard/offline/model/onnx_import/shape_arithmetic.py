"""Arithmetic on sizes: what a graph does between Shape and Reshape, on arrays of whole numbers.

Rule 1. The size of the batch stays a symbol: an array of sizes holds Python objects, and nothing here looks at one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.row_numbers import (
    STAND_IN_ROWS,
    RowNumber,
    has_rows,
    row_axis,
    row_count,
    row_range,
)

Sizes = NDArray[Any]  # of int, float, bool and torch.SymInt


def sizes_of(values: Any) -> Sizes:
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


def is_symbol(size: Any) -> bool:
    """Tell whether a size is the batch, or a multiple of the batch."""
    return isinstance(size, torch.SymInt)


def is_fixed(values: Sizes) -> bool:
    """Tell whether no size among these values is the batch."""
    return not any(map(is_symbol, np.ravel(values)))


def whole(values: Any) -> list[Any]:
    """Return a list of sizes, axes or indices as Python numbers and symbols."""
    return [value if is_symbol(value) else int(value) for value in np.ravel(values)]


def gather(node: Node, data: Sizes, index: Sizes) -> Sizes:
    return np.asarray(np.take(data, index.astype(np.int64), axis=node.get("axis", 0)), dtype=object)


def concat(node: Node, *parts: Sizes) -> Sizes:
    return np.concatenate([np.asarray(part, dtype=object) for part in parts], axis=node.get("axis", 0))


def unsqueeze(node: Node, data: Sizes, axes: Any = None) -> Sizes:
    return np.expand_dims(data, tuple(whole(node.get("axes") if axes is None else axes)))


def squeeze(node: Node, data: Sizes, axes: Any = None) -> Sizes:
    given = node.get("axes") if axes is None else axes
    return np.squeeze(data, None if given is None else tuple(whole(given)))


def cut(node: Node, data: Sizes, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Sizes:
    begin = whole(node.get("starts") if starts is None else starts)
    end = whole(node.get("ends") if ends is None else ends)
    named = node.get("axes") if axes is None else axes
    places = list(range(len(begin))) if named is None else whole(named)
    every = [1] * len(begin) if steps is None else whole(steps)
    for axis, start, stop, step in zip(places, begin, end, every, strict=True):
        index: list[slice] = [slice(None)] * data.ndim
        index[axis] = slice(start, None if step < 0 and stop < -data.shape[axis] else stop, step)
        data = data[tuple(index)]
    return data


def transpose(node: Node, data: Sizes) -> Sizes:
    """Turn a table of sizes, as the older exporter does with the widths of a padding."""
    return np.transpose(data, node.get("perm"))


def reshape(_node: Node, data: Sizes, target: Sizes) -> Sizes:
    return data.reshape(stood_in(target))


def flatten(node: Node, data: Sizes) -> Sizes:
    axis = node.get("axis", 1)
    axis += np.ndim(data) if axis < 0 else 0
    return np.reshape(np.asarray(data, dtype=object), (math.prod(np.shape(data)[:axis]), -1))


def tile(_node: Node, data: Sizes, repeats: Sizes) -> Sizes:
    return np.tile(np.asarray(data, dtype=object), whole(repeats))


def stood_in(sizes: Any) -> list[int]:
    """Return sizes of an array of places, which has stand-ins for its rows."""
    return [STAND_IN_ROWS if is_symbol(size) else size for size in whole(sizes)]


def shape(node: Node, data: Sizes) -> Sizes:
    sizes: list[Any] = list(np.shape(data))
    if has_rows(data) and (axis := row_axis(data)) is not None:
        sizes[axis] = row_count(data)
    return sizes_of(sizes[node.get("start", 0) : node.get("end")])


def count(node: Node, data: Sizes) -> Sizes:
    """Return how many numbers an array holds, as definitions of ONNX's own ask for the number of axes."""
    return sizes_of([math.prod(shape(node, data))]).reshape(())


def cast(node: Node, data: Sizes) -> Sizes:
    kinds: dict[int, Callable[[Any], Any]] = {1: float, 6: int, 7: int, 9: bool, 10: float, 11: float}
    kind = kinds.get(node.get("to"))
    if kind is None:
        raise node.refuse("sizes are cast to a type that they cannot have")
    return each(lambda value: value if is_symbol(value) or isinstance(value, RowNumber) else kind(value), data)


def each(function: Callable[[Any], Any], data: Sizes) -> Sizes:
    found = np.empty(np.shape(data), dtype=object)
    for place in np.ndindex(found.shape):
        found[place] = function(np.asarray(data, dtype=object)[place])
    return found


def unary(function: Callable[[Any], Any]) -> Callable[..., Sizes]:
    return lambda _node, data: each(function, data)


def binary(function: Callable[[Any, Any], Any]) -> Callable[..., Sizes]:
    def run(_node: Node, left: Sizes, right: Sizes) -> Sizes:
        pairs = np.broadcast(np.asarray(left, dtype=object), np.asarray(right, dtype=object))
        found = np.empty(pairs.shape, dtype=object)
        found.reshape(-1)[:] = [function(a, b) for a, b in pairs]
        return found

    return run


def quotient(left: Any, right: Any) -> Any:
    """Divide two sizes; whole numbers are divided as whole numbers, towards zero."""
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    if is_symbol(left) or is_symbol(right):
        return left // right
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


def power(left: Any, right: Any) -> Any:
    """Raise a size to a power, which is of the size's own kind: 2 to the power -1 is 0 in whole numbers."""
    return left**right if is_symbol(left) or isinstance(left, float) else int(left**right)


def rounded(function: Callable[[Any], Any]) -> Callable[..., Sizes]:
    """Round each size; a real number stays one, or a division behind it would be one of whole numbers."""
    return unary(lambda size: float(function(size)) if isinstance(size, float) else function(size))


def remainder(node: Node, left: Sizes, right: Sizes) -> Sizes:
    """Divide and keep the remainder, whose sign is the divisor's, or with `fmod` the dividend's."""
    if node.get("fmod", 0):
        return binary(lambda a, b: a - b * quotient(a, b) if isinstance(a, int) else math.fmod(a, b))(node, left, right)
    return binary(lambda a, b: a % b)(node, left, right)


def choose(_node: Node, condition: Sizes, left: Sizes, right: Sizes) -> Sizes:
    return np.where(np.asarray(condition, dtype=bool), np.asarray(left, object), np.asarray(right, object))


def filled(node: Node, sizes: Sizes) -> Sizes:
    value = node.get("value", np.zeros(1, np.float32)).item()
    return np.full(whole(sizes), value, dtype=object)


def expand(_node: Node, data: Sizes, sizes: Sizes) -> Sizes:
    return np.asarray(data, dtype=object) * np.ones(stood_in(sizes), dtype=object)


def span(node: Node, start: Sizes, end: Sizes, step: Sizes) -> Sizes:
    if is_symbol(end.item()) and (start.item(), step.item()) == (0, 1):
        return row_range(end.item())
    limits = [limit.item() for limit in (start, end, step)]
    if any(isinstance(limit, float) for limit in limits):
        raise node.refuse(f"counts {limits} in real numbers; only whole ones are supported")
    return sizes_of(range(*whole(limits)))


def reduced(function: Callable[[Any, Any], Any], start: int | None = None) -> Callable[..., Sizes]:
    """Return the operator that joins all sizes along its axes by a function of two."""

    def run(node: Node, data: Sizes, axes: Any = None) -> Sizes:
        given = node.get("axes") if axes is None else axes
        if (given is None or not len(given)) and node.get("noop_with_empty_axes", 0):
            return data
        values = np.asarray(data, dtype=object)
        along = {axis % values.ndim for axis in whole(given)} if given is not None else set(range(values.ndim))
        for axis in sorted(along or range(values.ndim), reverse=True):
            lines = np.moveaxis(values, axis, -1)
            joined = np.empty(lines.shape[:-1], dtype=object)
            for place in np.ndindex(joined.shape):
                joined[place] = reduce(function, lines[place].tolist(), *(() if start is None else (start,)))
            values = np.expand_dims(joined, axis) if node.get("keepdims", 1) else joined
        return values

    return run


def written(node: Node, data: Sizes, index: Sizes, updates: Sizes) -> Sizes:
    """Write whole numbers at fixed places of an array of such."""
    if node.get("reduction", "none") != "none":
        raise node.refuse(f"combines what it writes with what is there by {node.get('reduction')!r}")
    found = np.array(data, dtype=object)
    found[tuple(np.moveaxis(np.asarray(index).astype(np.int64), -1, 0))] = np.asarray(updates, dtype=object)
    return found


SIZES: Mapping[str, Callable[..., Sizes]] = {
    "Gather": gather,
    "Concat": concat,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Shape": shape,
    "Size": count,
    "Slice": cut,
    "Transpose": transpose,
    "Reshape": reshape,
    "Flatten": flatten,
    "Tile": tile,
    "Cast": cast,
    "Identity": lambda _node, data: data,
    "Add": binary(lambda a, b: a + b),
    "Sub": binary(lambda a, b: a - b),
    "Mul": binary(lambda a, b: a * b),
    "Div": binary(quotient),
    "Mod": remainder,
    "Min": binary(min),
    "Max": binary(max),
    "Equal": binary(lambda a, b: bool(a == b)),
    "Greater": binary(lambda a, b: bool(a > b)),
    "GreaterOrEqual": binary(lambda a, b: bool(a >= b)),
    "Less": binary(lambda a, b: bool(a < b)),
    "LessOrEqual": binary(lambda a, b: bool(a <= b)),
    "And": binary(lambda a, b: a and b),
    "Or": binary(lambda a, b: a or b),
    "Pow": binary(power),
    "Sqrt": unary(math.sqrt),
    "Floor": rounded(math.floor),
    "Ceil": rounded(math.ceil),
    "Abs": unary(abs),
    "Neg": unary(lambda a: -a),
    "Not": unary(lambda a: not a),
    "Where": choose,
    "ConstantOfShape": filled,
    "Expand": expand,
    "Range": span,
    "ReduceProd": reduced(operator.mul, 1),
    "ReduceSum": reduced(operator.add, 0),
    "ReduceMax": reduced(max),
    "ReduceMin": reduced(min),
    "ScatterND": written,
}


def are_whole(values: Any) -> bool:
    """Tell whether an operand, if there is one, is an array of whole numbers that no item moves."""
    if values is None or has_rows(values):
        return values is None
    return all(
        isinstance(value, int | np.integer) and not isinstance(value, bool) for value in np.ravel(values).tolist()
    )
