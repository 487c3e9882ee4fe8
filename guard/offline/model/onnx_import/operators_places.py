"""ONNX operators that read or write fixed places: Gather, GatherND, ScatterND.

Rule 1. Where the places run over the batch, each item reads and writes its own numbers, in the same way (`RowPlaces`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guard.errors import ModelError
from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_categories import embedded
from guard.offline.model.onnx_import.row_numbers import RowPlaces, has_rows, places_of_items, places_of_rows
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol, whole

aten = torch.ops.aten
MAX_SLICED_PARTS = 8  # of an axis; more places than that are looked up
REACHES = frozenset({"Gather", "GatherND", "ScatterND"})
BESIDE = frozenset({"GatherElements", "ScatterElements"})  # whose index has all the operand's axes, the batch too


def crosses_items(node: Node) -> ModelError:
    return node.refuse(
        "picks places across the items of a batch, and that each item is read alone cannot be shown",
        "export the model from a contiguous example (example.contiguous()), with a dynamic batch axis, or with "
        "torch.onnx.export(..., dynamo=False)",
    )


def gather(node: Node, x: Tensor, index: Any) -> Tensor:
    """Pick fixed places along an axis, or rows of a fixed table by codes that are computed."""
    axis = int(node.get("axis", 0)) % x.dim()
    if isinstance(index, Tensor):
        return embedded(node, x, index)
    if isinstance(index, RowPlaces):
        return picked_by_row(x, index)
    if has_rows(index):
        return picked_by_row(x, proven(node, index, x.shape[axis])) if axis == 0 else refuse_rows(node)
    if index.ndim == 0 and not is_symbol(x.shape[axis]):
        return x.select(axis, int(index.item()))
    return picked(node, x, axis, index)


def gather_nd(node: Node, x: Tensor, index: Any) -> Tensor:
    """Pick places of several axes: index [..., coordinate], the same for all items where `batch_dims` is 1."""
    shared = int(node.get("batch_dims", 0))
    if isinstance(index, RowPlaces):
        return picked_by_row(flat(x, 0, index.axes), index)
    if shared > 1 or (shared == 1 and not bool((index == index[:1]).all())):
        raise node.refuse("picks other places for each item")
    index = index[0] if shared else index
    axes = index.shape[-1]
    places = linear(index, x.shape[shared : shared + axes])
    merged = flat(x, shared, axes)
    if has_rows(places):
        return picked_by_row(merged, proven(node, places, merged.shape[0]))
    return picked(node, merged, shared, places)


def scatter_nd(node: Node, x: Tensor, index: Any, updates: Any) -> Tensor:
    """Write `updates` at fixed places, as a look-up in what was there and what is written."""
    if not isinstance(updates, Tensor):
        updates = torch.tensor(updates, dtype=x.dtype)
    if node.get("reduction", "none") != "none":
        raise node.refuse(f"combines what it writes with what is there by {node.get('reduction')!r}")
    if not isinstance(index, RowPlaces):
        axes = index.shape[-1]
        places = linear(index, x.shape[:axes])
        if not has_rows(places):
            return overwritten(node, x, axes, np.asarray(places, np.int64), updates)
        index = proven(node, places, math.prod(x.shape[:axes]), axes)
    return overwritten_by_row(x, index, updates)


def overwritten(node: Node, x: Tensor, axes: int, places: Any, updates: Tensor) -> Tensor:
    if any(is_symbol(size) for size in x.shape[:axes]):
        raise crosses_items(node)
    sizes, rest = x.shape[:axes], x.shape[axes:]
    wanted = [*places.shape, *(-1 if is_symbol(size) and is_symbol(updates.shape[places.ndim + i]) else size
                               for i, size in enumerate(rest))]  # fmt: skip
    written = flat(updates.expand(wanted), 0, places.ndim)
    both = torch.cat([flat(x, 0, axes), written], 0)
    found: Tensor = looked_up(both, 0, table(math.prod(sizes), places)).unflatten(0, list(sizes))
    return found


def overwritten_by_row(x: Tensor, index: RowPlaces, updates: Tensor) -> Tensor:
    rest = list(x.shape[index.axes :])
    mine = x.reshape([-1, index.step, *rest])
    wanted = [*index.pattern.shape, *rest]
    wanted.insert(index.axis, -1)
    written = updates.expand(wanted).permute(moved(index.axis, 0, len(wanted)))
    written = written.reshape([-1 if is_symbol(written.shape[0]) else written.shape[0], index.pattern.size, *rest])
    if is_symbol(mine.shape[0]) and not is_symbol(written.shape[0]):
        written = written.expand(mine.shape[0], *(-1 for _ in range(written.dim() - 1)))
    elif is_symbol(written.shape[0]) and not is_symbol(mine.shape[0]):
        mine = mine.expand(written.shape[0], *(-1 for _ in range(mine.dim() - 1)))
    found = looked_up(torch.cat([mine, written], 1), 1, table(index.step, index.pattern))
    return found.reshape([-1, *x.shape[1 : index.axes], *rest])


def gather_elements(node: Node, x: Tensor, index: Any) -> Tensor:
    axis = int(node.get("axis", 0)) % x.dim()
    return looked_up(x, axis, along(node, x, axis, index))


def scatter_elements(node: Node, x: Tensor, index: Any, updates: Tensor) -> Tensor:
    axis = int(node.get("axis", 0)) % x.dim()
    if node.get("reduction", "none") != "none":
        raise node.refuse(f"combines what it writes with what is there by {node.get('reduction')!r}")
    places = along(node, x, axis, index)
    wanted = [-1 if is_symbol(size) and is_symbol(updates.shape[i]) else size for i, size in enumerate(x.shape)]
    wanted[axis] = len(places)
    return looked_up(torch.cat([x, updates.expand(wanted)], axis), axis, table(int(x.shape[axis]), np.asarray(places)))


def along(node: Node, x: Tensor, axis: int, index: Any) -> list[int]:
    """Return the places along an axis, where they are the same for all numbers beside each other."""
    numbers = np.moveaxis(np.asarray(index), axis, -1)
    places = numbers[(0,) * (numbers.ndim - 1)]
    beside = zip(np.delete(numbers.shape, -1), np.delete(np.asarray(x.shape, dtype=object), axis), strict=True)
    all_of_them = all(is_symbol(size) or int(count) == int(size) for count, size in beside)
    if is_symbol(x.shape[axis]) or not all_of_them or not bool((numbers == places).all()):
        raise node.refuse("reads or writes other places for each number", "write it as an index along one axis")
    return [int(place) % int(x.shape[axis]) for place in places]


def table(length: int, places: Any) -> list[int]:
    """Return for each place where its number lies behind the numbers that were there; the last one written counts."""
    found = list(range(length))
    for order, place in enumerate(places.ravel()):
        found[int(place)] = length + order
    return found


def proven(node: Node, index: Any, length: Any, axes: int = 1) -> RowPlaces:
    found = places_of_rows(index, length, axes)
    if found is None:
        raise crosses_items(node)
    return found


def refuse_rows(node: Node) -> Tensor:
    raise crosses_items(node)


def freed_places(node: Node, made_for: Sequence[int], index: Any, items: int) -> RowPlaces:
    """Return the places of a file that is fixed to so many items, for any number. Raises ModelError: they are mixed."""
    places, axes = (
        (index, 1) if node.kind == "Gather" else (linear(index, made_for[: index.shape[-1]]), index.shape[-1])
    )
    length = math.prod(made_for[:axes])
    found = places_of_items(np.where(places < 0, places + length, places), length, items, axes)
    if found is None:
        raise crosses_items(node)
    return found


def runs_over_items(node: Node, operands: Sequence[Any]) -> bool:
    """Tell whether an operator's places are numbers that count through the batch."""
    if node.kind not in REACHES or has_rows(operands[1]) or not isinstance(operands[1], np.ndarray):
        return False
    x, index = operands[:2]
    if node.kind == "Gather":
        return node.get("axis", 0) in (0, -x.dim()) and is_symbol(x.shape[0])
    return not node.get("batch_dims", 0) and any(is_symbol(size) for size in x.shape[: index.shape[-1]])


def counts_items(node: Node, operands: Sequence[Any]) -> bool:
    """Tell whether an operator's index, a constant, reaches a fixed number of items of any number there are."""
    return node.kind in BESIDE and any(is_symbol(size) for size in operands[0].shape)


def fixed_number(node: Node) -> ModelError:
    return node.refuse(
        "reads or writes as many items as its index has, of any number of them",
        "export the file with a fixed batch axis, or write it as an index along one axis",
    )


def linear(index: Any, sizes: Sequence[Any]) -> Any:
    """Return places in the flattened leading axes from coordinates [..., coordinate]."""
    total: Any = 0
    for place, size in enumerate(sizes):
        part = index[..., place]
        if not is_symbol(size) and not has_rows(part):
            part = np.where(part < 0, part + int(size), part)
        total = total * (1 if is_symbol(size) else int(size)) + part
    return total


def flat(x: Tensor, start: int, axes: int) -> Tensor:
    return x if axes == 1 else x.flatten(start, start + axes - 1)


def picked(node: Node, x: Tensor, axis: int, index: Any) -> Tensor:
    """Return x with an axis replaced by those that `index` has."""
    length = x.shape[axis]
    if is_symbol(length):
        raise crosses_items(node)
    found = looked_up(x, axis, [place % int(length) for place in whole(index)])
    return found if index.ndim == 1 else found.unflatten(axis, list(index.shape))


def picked_by_row(x: Tensor, places: RowPlaces) -> Tensor:
    """Return what each row reads of its own numbers, the rows where the places have them."""
    rows = x.reshape([-1, places.step, *x.shape[1:]])
    found = looked_up(rows, 1, places.pattern.ravel().tolist())
    if places.pattern.ndim != 1:
        found = found.unflatten(1, list(places.pattern.shape)) if places.pattern.ndim else found.squeeze(1)
    return found if places.axis == 0 else found.permute(moved(0, places.axis, found.dim()))


def moved(axis: int, to: int, rank: int) -> list[int]:
    """Return the order of axes in which one has moved."""
    order = [other for other in range(rank) if other != axis]
    order.insert(to, axis)
    return order


def looked_up(x: Tensor, axis: int, places: list[int]) -> Tensor:
    """Pick a list of places along an axis: few runs as slices, more by a look-up."""
    if places == list(range(int(x.shape[axis]))):
        return x
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    if len(runs) > MAX_SLICED_PARTS:
        return torch.index_select(x, axis, torch.tensor(places))
    parts = [aten.slice.Tensor(x, axis, run[0], run[-1] + 1) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


PLACES: dict[str, Any] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
