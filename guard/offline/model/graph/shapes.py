"""Sizes of a graph's values, in which the batch axis is left free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from guard.errors import ModelError

Shape: TypeAlias = tuple[int | None, ...]


def shape(operand: Any) -> Shape:
    """Return an operand's sizes as the exporter recorded them; None is the batch or a multiple. A number has none."""
    if not isinstance(operand, fx.Node):
        return tuple(operand.shape) if isinstance(operand, Tensor) else ()
    value = operand.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymFloat | int | float):
        return ()
    if not isinstance(value, Tensor):
        raise ModelError(f"{operand.target} ({operand.name}) carries no shape; make the graph with torch.export")
    sizes: list[Any] = list(value.shape)  # of int and SymInt, which the type checker takes for int
    return tuple(size if isinstance(size, int) else None for size in sizes)


def shape_of(node: fx.Node) -> list[int]:
    """Return the sizes of a node's value as the example's propagation recorded them; a free one is -1."""
    value = node.meta.get("val")
    return [int(size) if isinstance(size, int) else -1 for size in getattr(value, "shape", ())]


def static(operand: fx.Node, *axes: int) -> tuple[int, ...]:
    """Return the sizes of these axes. Raises: ModelError when one varies: only the batch may."""
    sizes = shape(operand)
    found = tuple(size for size in (sizes[axis] for axis in axes) if size is not None)
    if len(found) < len(axes):
        raise ModelError(
            f"{operand.target} ({operand.name}) has shape {sizes}: only the first axis, the batch, may vary"
        )
    return found


def wildcard(sizes: Shape, node: fx.Node) -> list[int]:
    """Return the sizes to reshape to, the batch written as -1. Raises: ModelError when two axes vary."""
    if sum(size is None for size in sizes) > 1:
        raise ModelError(
            f"{node.target} ({node.name}) splits the batch over two axes {sizes}; an item must stay in one piece"
        )
    return [-1 if size is None else size for size in sizes]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return a setting that was given once or twice as a pair, for height and width."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
