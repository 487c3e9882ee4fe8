"""Strategies for graphs of one operator that reads or writes fixed places of several axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
MAX_PLACES = 4  # that are read or written
MANY = 12  # of them are looked up, not sliced


def begin(draw: Any) -> Writer:
    writer = Writer.begin(draw, opsets=(13, 16, 18, 20), size=4)
    writer.items = writer.one_of(None, 1, 2)
    return writer


def signed(writer: Writer, place: int, length: int) -> int:
    return place - length if writer.integer(0, 2) == 0 else place


def along_an_axis(writer: Writer, axis: int, sizes: list[int], *, unique: bool) -> NDArray[np.int64]:
    """Draw an index of GatherElements: mostly the same places for all numbers beside each other."""
    length = sizes[axis]
    places = [
        signed(writer, place, length)
        for place in writer.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=MAX_PLACES, unique=unique))
    ]
    shape = [len(places) if place == axis else size for place, size in enumerate(sizes)]
    if writer.integer(0, 4) == 0 and not unique:
        return np.random.default_rng(writer.integer(0, 9)).integers(-length, length, shape)
    if writer.integer(0, 4) == 0:  # the index reaches less far than the operand
        shape = [size if place == axis else writer.one_of(size, 1) for place, size in enumerate(shape)]
    turned = np.asarray(places, np.int64).reshape([-1 if place == axis else 1 for place in range(len(sizes))])
    return np.ascontiguousarray(np.broadcast_to(turned, shape))


def alike(writer: Writer, *sizes: int) -> str:
    """A constant [item, *sizes] of noise that is the same for each item of the file."""
    one = np.random.default_rng(writer.integer(0, 9)).normal(0, 1, (1, *sizes)).astype(np.float32)
    return writer.constant(np.repeat(one, writer.items or 1, axis=0))


def gather_elements(draw: Any) -> Drawn:
    writer = begin(draw)
    axis = writer.axis(writer.one_of(1, 1, 1, 0))
    index = along_an_axis(writer, axis % writer.rank, [writer.items or 1, *writer.shape], unique=False)
    return writer.end(writer.add("GatherElements", ["input", for_all_items(writer, index)], axis=axis))


def for_all_items(writer: Writer, index: NDArray[np.int64]) -> str:
    """The index as a constant, or where the number of items is free as one that is repeated for each."""
    if writer.items or writer.integer(0, 3) == 0:
        return writer.constant(index)
    items = writer.add("Slice", [writer.add("Shape", ["input"]), writer.whole(0), writer.whole(1)])
    sizes = writer.add("Concat", [items, writer.whole(*index.shape[1:])], axis=0)
    return writer.add("Expand", [writer.constant(index), sizes])


def scatter_elements(draw: Any) -> Drawn:
    """Write along an axis what a constant has, or what the input has elsewhere."""
    writer = begin(draw)
    axis = writer.axis()
    index = along_an_axis(writer, axis % writer.rank, [writer.items or 1, *writer.shape], unique=True)
    places = for_all_items(writer, index)
    written = alike(writer, *index.shape[1:]) if writer.integer(0, 3) else writer.numbers(*index.shape)
    if writer.integer(0, 2):
        written = writer.add("GatherElements", [writer.add("Exp", ["input"]), places], axis=axis)
    reduction = writer.one_of(None, None, None, "none", "add") if writer.opset >= 16 else None
    return writer.end(writer.add("ScatterElements", ["input", places, written], axis=axis, reduction=reduction))


def coordinates(writer: Writer, sizes: tuple[int, ...], *, unique: bool) -> NDArray[np.int64]:
    """Draw places [place, coordinate] of leading axes, negative ones too."""
    axes = writer.integer(1, len(sizes))
    grid = list(itertools.product(*map(range, sizes[:axes])))
    most = writer.one_of(MAX_PLACES, MAX_PLACES, MANY)
    chosen = writer.draw(st.lists(st.sampled_from(grid), min_size=1, max_size=most, unique=unique))
    return np.asarray([[signed(writer, at, size) for at, size in zip(place, sizes, strict=False)] for place in chosen])


def in_rows(writer: Writer, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the places an axis more, or leave them in a list."""
    count = len(index)
    shape = writer.one_of([count], [count], [1, count], [count, 1], [count // 2, 2] if count % 2 == 0 else [count])
    return index.reshape([*shape, index.shape[-1]])


def gather_nd(draw: Any) -> Drawn:
    """Read places of each item: its batch turned to the end, named as shared, or as the first coordinate."""
    writer = begin(draw)
    index = in_rows(writer, coordinates(writer, writer.shape, unique=False))
    match (
        writer.one_of("turned", "shared", "counted", "mixed")
        if writer.items
        else writer.one_of("turned", "turned", "mixed")
    ):
        case "turned":
            last = writer.add("Transpose", ["input"], perm=[*range(1, writer.rank), 0])
            found = writer.add("GatherND", [last, writer.constant(index)])
            rank = index.ndim - 1 + writer.rank - index.shape[-1]
            return writer.end(writer.add("Transpose", [found], perm=[rank - 1, *range(rank - 1)]))
        case "shared":
            every = writer.constant(np.repeat(index[None], writer.items or 1, axis=0))
            return writer.end(writer.add("GatherND", ["input", every], batch_dims=1))
        case "counted":
            return writer.end(writer.add("GatherND", ["input", writer.constant(by_item(index, writer.items or 1))]))
        case _:
            return writer.end(writer.add("GatherND", ["input", writer.constant(by_item(index, 1))]))


def by_item(index: NDArray[np.int64], items: int) -> NDArray[np.int64]:
    """The same places of each item, whose number is the first coordinate."""
    numbers = [np.concatenate([np.full_like(index[..., :1], item), index], axis=-1) for item in range(items)]
    return np.stack(numbers)


def scatter_nd(draw: Any) -> Drawn:
    writer = begin(draw)
    unique = coordinates(writer, writer.shape, unique=False)
    _, first = np.unique(unique % np.asarray(writer.shape[: unique.shape[1]]), axis=0, return_index=True)
    index = in_rows(writer, unique[np.sort(first)])
    reduction = writer.one_of(None, None, None, "none", "add") if writer.opset >= 16 else None
    rest = writer.shape[index.shape[-1] :]
    if writer.items and writer.flag():
        every = by_item(index, writer.items)
        written = alike(writer, *every.shape[1:-1], *rest)
        return writer.end(writer.add("ScatterND", ["input", writer.constant(every), written], reduction=reduction))
    last = writer.add("Transpose", ["input"], perm=[*range(1, writer.rank), 0])
    written = writer.add("GatherND", [writer.add("Exp", [last]), writer.constant(index)])
    if writer.flag() and writer.items:
        written = writer.numbers(*index.shape[:-1], *rest, writer.items)
    found = writer.add("ScatterND", [last, writer.constant(index), written], reduction=reduction)
    return writer.end(writer.add("Transpose", [found], perm=[writer.rank - 1, *range(writer.rank - 1)]))


DRAWINGS: dict[str, Drawing] = {
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
