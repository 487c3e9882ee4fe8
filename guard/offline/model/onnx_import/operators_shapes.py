"""ONNX operators that move numbers and change none of them.

Rule 1. The batch axis is the symbol among the sizes; it is never written as a number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.operators_places import crosses_items, looked_up
from guard.offline.model.onnx_import.shape_arithmetic import Sizes, is_symbol, sizes_of, whole

aten = torch.ops.aten


def shape(node: Node, x: Tensor) -> Sizes:
    return sizes_of(list(x.shape)[node.get("start", 0) : node.get("end")])


def count(_node: Node, x: Tensor) -> Sizes:
    return sizes_of([math.prod(x.shape)]).reshape(())


def reshape(node: Node, x: Tensor, sizes: Any) -> Tensor:
    """Reshape, with the batch written as -1 wherever that can be told, so that no later reader depends on it."""
    target = whole(sizes)
    if not node.get("allowzero", 0):
        target = [x.shape[axis] if is_number(size, 0) else size for axis, size in enumerate(target)]
    return x.reshape(with_wildcard(list(x.shape), target))


def is_number(size: Any, value: int) -> bool:
    return not is_symbol(size) and int(size) == value


def with_wildcard(before: list[Any], after: list[Any]) -> list[Any]:
    symbols = [axis for axis, size in enumerate(after) if is_symbol(size)]
    unknown = [axis for axis, size in enumerate(after) if is_number(size, -1)]
    if len(symbols) == 1 and not unknown:
        return [-1 if axis in symbols else size for axis, size in enumerate(after)]
    shared = [size for size in before if is_symbol(size)]
    if len(symbols) == len(unknown) == len(shared) == 1 and bool(shared[0] == after[symbols[0]]):
        known = math.prod(size for axis, size in enumerate(after) if axis not in (*symbols, *unknown))
        rest = math.prod(size for size in before if not is_symbol(size)) // known
        return [-1 if axis in symbols else rest if axis in unknown else size for axis, size in enumerate(after)]
    return after


def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    left = math.prod(x.shape[:axis])
    return x.reshape(with_wildcard(list(x.shape), [left, math.prod(x.shape[axis:])]))


def transpose(node: Node, x: Tensor) -> Tensor:
    order = list(node.get("perm", range(x.dim())[::-1]))
    return x if order == sorted(order) else x.permute(order)


def squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = node.get("axes") if axes is None else axes
    if given is None:
        found = [axis for axis, size in enumerate(x.shape) if is_number(size, 1)]
    else:
        found = [axis % x.dim() for axis in whole(given)]
    for axis in sorted(found, reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = whole(node.get("axes") if axes is None else axes)
    rank = x.dim() + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def concat(node: Node, *parts: Tensor) -> Tensor:
    """Concatenate; a part that is the same for every item is repeated for each."""
    axis = int(node.get("axis")) % parts[0].dim()
    sizes = [next((p.shape[i] for p in parts if not is_number(p.shape[i], 1)), 1) for i in range(parts[0].dim())]
    repeated = []
    for part in parts:
        wanted = [
            size if place != axis and is_number(part.shape[place], 1) and not is_number(size, 1) else -1
            for place, size in enumerate(sizes)
        ]
        repeated.append(part if all(is_number(size, -1) for size in wanted) else part.expand(wanted))
    return torch.cat(repeated, axis)


def split(node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = int(node.get("axis", 0)) % x.dim()
    given = node.get("split") if sizes is None else sizes
    parts = len(node.outputs)
    if given is None:
        length = -(-int(x.shape[axis]) // parts)
        given = [min(length, int(x.shape[axis]) - length * i) for i in range(parts)]
    return tuple(torch.split(x, whole(given), axis))


def cut(node: Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Tensor:
    begin = whole(node.get("starts") if starts is None else starts)
    end = whole(node.get("ends") if ends is None else ends)
    named = node.get("axes") if axes is None else axes
    places = list(range(len(begin))) if named is None else whole(named)
    every = [1] * len(begin) if steps is None else whole(steps)
    for axis, start, stop, step in zip(places, begin, end, every, strict=True):
        if not is_symbol(step) and step < 0:
            x = backwards(node, x, axis % x.dim(), start, stop, step)
        elif not is_whole(x.shape[axis], start, stop, step):
            x = aten.slice.Tensor(x, axis, start, stop, step)
    return x


def backwards(node: Node, x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    if is_symbol(x.shape[axis]):
        raise crosses_items(node)
    length = int(x.shape[axis])
    return looked_up(x, axis, list(range(length))[start : None if stop < -length else stop : step])


def is_whole(length: Any, start: Any, stop: Any, step: Any) -> bool:
    """Tell whether a slice cuts nothing away; "to the end" is written as any huge number."""
    if is_symbol(stop) or is_symbol(start) or (start, step) != (0, 1):
        return False
    return bool(stop >= 2**31 - 1 or (not is_symbol(length) and stop >= length))


def pad(node: Node, x: Tensor, widths: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    given = whole(node.get("pads") if widths is None else widths)
    places = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in whole(axes)]
    sides = {axis: (given[i], given[i + len(places)]) for i, axis in enumerate(places)}
    mode = node.get("mode", "constant")
    if mode != "constant":
        return mirrored(node, x, sides, mode)
    flat = [side for axis in reversed(range(x.dim())) for side in sides.get(axis, (0, 0))]
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    amount = float(node.get("value", 0.0) if value is None else value.item())
    return functional.pad(x, flat, value=amount) if flat else x


def mirrored(node: Node, x: Tensor, sides: dict[int, tuple[int, int]], mode: str) -> Tensor:
    """Pad with numbers of the image itself, by numpy's names: reflect, edge, wrap; widths below 0 cut off first."""
    for axis, widths in sides.items():
        if widths != (0, 0):
            if is_symbol(x.shape[axis]):
                raise crosses_items(node)
            length = int(x.shape[axis])
            kept = np.arange(length)[max(0, -widths[0]) : length - max(0, -widths[1])]
            more = (max(0, widths[0]), max(0, widths[1]))
            x = looked_up(x, axis, np.pad(kept, more, mode).tolist())  # type: ignore[call-overload]
    return x


def expand(_node: Node, x: Tensor, sizes: Any) -> Tensor:
    """Expand to these sizes, of which a 1 keeps what is there."""
    wanted = whole(sizes)
    wanted = [1] * (x.dim() - len(wanted)) + wanted
    more = len(wanted) - x.dim()
    kept = [
        -1 if axis >= more and (is_number(size, 1) or same_size(x.shape[axis - more], size)) else size
        for axis, size in enumerate(wanted)
    ]
    return x if not more and all(is_number(size, -1) for size in kept) else x.expand(kept)


def same_size(have: Any, wanted: Any) -> bool:
    """Tell whether two sizes are the same; a symbol is the batch, and there is only one."""
    return is_symbol(have) or (not is_symbol(wanted) and int(have) == int(wanted))


def tile(node: Node, x: Tensor, repeats: Any) -> Tensor:
    for axis, times in enumerate(whole(repeats)):
        if is_number(times, 1):
            continue
        if is_number(x.shape[axis], 1):
            x = x.expand([times if place == axis else -1 for place in range(x.dim())])
        elif is_symbol(times):
            raise node.refuse("repeats along an axis as often as there are items")
        else:
            x = torch.cat([x] * times, axis)
    return x


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    size = int(node.get("blocksize"))
    channels, height, width = (int(length) for length in x.shape[1:])
    inner = channels // size**2
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    parts = x.reshape(-1, size, size, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(-1, inner, height * size, width * size)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    size = int(node.get("blocksize"))
    channels, height, width = (int(length) for length in x.shape[1:])
    parts = x.reshape(-1, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(-1, channels * size**2, height // size, width // size)


def triangle(node: Node, x: Tensor, diagonal: Any = None) -> Tensor:
    """Keep one triangle of the last two axes, and write zeros in the other."""
    if any(is_symbol(size) for size in x.shape[-2:]):
        raise crosses_items(node)
    kept = torch.ones(int(x.shape[-2]), int(x.shape[-1]), dtype=torch.bool)
    shift = 0 if diagonal is None else int(np.ravel(diagonal)[0])
    return torch.where(kept.triu(shift) if node.get("upper", 1) else kept.tril(shift), x, torch.zeros_like(x))


def filled(node: Node, sizes: Any) -> Tensor:
    """Return a tensor of these sizes filled with the node's value, by default 0."""
    value = node.get("value")
    return torch.full(whole(sizes), 0.0 if value is None else value.item())


SHAPES: dict[str, Any] = {
    "Concat": concat,
    "ConstantOfShape": filled,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape,
    "Size": count,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
