"""Strategies for graphs of one operator that moves numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
TO_THE_END = 2**63 - 1


def concat(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    parts = ["input", *(writer.add(writer.one_of("Neg", "Sigmoid"), ["input"]) for _ in range(writer.integer(0, 2)))]
    return writer.end(writer.add("Concat", draw(st.permutations(parts)), axis=writer.axis()))


def constant_of_shape(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    value = writer.one_of(None, helper.make_tensor("v", writer.one_of(TensorProto.FLOAT, TensorProto.INT64), [1], [3]))
    sizes = writer.add("Shape", ["input"])
    if writer.flag():
        first = writer.add("Slice", [sizes, writer.whole(0), writer.whole(1)])
        sizes = writer.add("Concat", [first, writer.whole(*(1 for _ in writer.shape))], axis=0)
    made = writer.as_number(writer.add("ConstantOfShape", [sizes], value=value))
    return writer.end(writer.add("Add", ["input", made]))


def depth_to_space(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,))
    size = writer.integer(1, 3)
    writer.shape = (size**2 * writer.integer(1, 2), *writer.shape[1:])
    mode = writer.one_of(None, "DCR", "CRD")
    return writer.end(writer.add("DepthToSpace", ["input"], blocksize=size, mode=mode))


def space_to_depth(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), size=3)
    size = writer.integer(1, 3)
    writer.shape = (writer.shape[0], *(size * length for length in writer.shape[1:]))
    return writer.end(writer.add("SpaceToDepth", ["input"], blocksize=size))


def expand(draw: Any) -> Drawn:
    writer = Writer.begin(draw, size=3)
    sizes = [writer.one_of(1, size if size > 1 else writer.integer(1, 3)) for size in writer.shape]
    more = [writer.integer(1, 2)] if writer.flag() else []
    wanted = [*more, 1, *sizes]
    return writer.end(
        writer.add("Expand", ["input", writer.whole(*(wanted if more else wanted[writer.integer(0, 2) :]))])
    )


def flatten(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    axis = writer.one_of(None, *range(-writer.rank, writer.rank + 1))
    return writer.end(writer.add("Flatten", ["input"], axis=axis))


def gather(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    axis = writer.axis()
    length = (0, *writer.shape)[axis]
    place = st.integers(-length, length - 1)
    places = draw(
        place | st.lists(place, min_size=1, max_size=5) | st.lists(st.tuples(place, place), min_size=1, max_size=2)
    )
    chosen = writer.constant(np.asarray(places, np.int64))
    return writer.end(writer.add("Gather", ["input", chosen], axis=writer.one_of(axis, axis or None)))


def pad(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(7, 11, 13, 18, 19))
    axes = [axis % writer.rank for axis in writer.axes()] if writer.opset >= 18 and writer.flag() else None
    low = writer.one_of(0, 0, -1)
    places = range(writer.rank) if axes is None else axes
    pairs = [[0, 0] if axis == 0 else [writer.integer(low, 2), writer.integer(low, 2)] for axis in places]
    widths = [width for side in zip(*pairs, strict=True) for width in side]
    mode = writer.one_of(None, None, "constant", "reflect", "edge", *(["wrap"] if writer.opset >= 19 else []))
    value = writer.one_of(None, writer.real(-2, 2))
    if writer.opset < 11:
        return writer.end(writer.add("Pad", ["input"], pads=widths, mode=mode, value=value))
    operands = [writer.whole(*widths), None if value is None else writer.constant(np.float32(value))]
    named = None if axes is None else writer.whole(*axes)
    return writer.end(writer.add("Pad", ["input", *operands, named], mode=mode))


def reshape(draw: Any) -> Drawn:
    """Sizes of an item regrouped: axes merged, split, copied or left to be found out."""
    writer = Writer.begin(draw, opsets=(13, 14, 20))
    total = int(np.prod(writer.shape))
    item = draw(st.sampled_from([[total], [1, total], [total, 1], list(writer.shape[::-1]), [*writer.shape, 1], [-1]]))
    if item != [-1] and writer.flag():
        item[writer.integer(0, len(item) - 1)] = -1
    batch = writer.one_of(0, -1) if -1 not in item else 0
    copied = writer.flag() and len(item) >= 2 and item[0] == writer.shape[0] and writer.opset >= 14
    target = [batch, 0, *item[1:]] if copied else [batch, *item]
    if writer.integer(0, 4) == 0:
        target = [-1, writer.shape[-1]]  # the batch and what follows as one axis
    zero = writer.one_of(None, 0) if writer.opset >= 14 else None
    return writer.end(writer.add("Reshape", ["input", writer.whole(*target)], allowzero=zero))


def slicing(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(9, 11, 13))
    axes = writer.axes()
    starts, ends, steps = [], [], []
    for axis in axes:
        length = (0, *writer.shape)[axis]
        starts.append(writer.integer(-length - 1, length))
        steps.append(writer.one_of(1, 1, 2, 3, -1, -2))
        past = (TO_THE_END, 2**31 - 1, length, length + 3) if steps[-1] > 0 else (-TO_THE_END, -(2**31), -length - 1)
        ends.append(writer.one_of(*past, -1, writer.integer(-length, length)))
    if writer.opset < 10:
        return writer.end(writer.add("Slice", ["input"], starts=starts, ends=ends, axes=axes))
    given = [starts, ends, axes, steps] if writer.flag() else [starts, ends, axes]
    return writer.end(writer.add("Slice", ["input", *(writer.whole(*values) for values in given)]))


def split(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(11, 13, 18, 20))
    axis = writer.axis()
    length = (0, *writer.shape)[axis]
    parts = writer.integer(1, min(4, length))
    even = [length // parts + (place < length % parts) for place in range(parts)]
    sizes = draw(st.permutations(even))
    if writer.opset == 11:
        writer.add("Split", ["input"], parts, axis=axis, split=sizes)
    elif writer.opset < 18 or writer.flag():
        writer.add("Split", ["input", writer.whole(*sizes)], parts, axis=axis)
    else:
        writer.add("Split", ["input"], parts, axis=axis, num_outputs=parts)
    return writer.end(writer.nodes[0].output[writer.integer(0, parts - 1)])


def tile(draw: Any) -> Drawn:
    writer = Writer.begin(draw, size=3)
    repeats = [1, *(writer.integer(1, 3) for _ in writer.shape)]
    return writer.end(writer.add("Tile", ["input", writer.whole(*repeats)]))


def transpose(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    order = writer.one_of(
        None, [0, *draw(st.permutations(range(1, writer.rank)))], draw(st.permutations(range(writer.rank)))
    )
    return writer.end(writer.add("Transpose", ["input"], perm=order))


def squeeze(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(11, 13, 20))
    writer.shape = tuple(1 if writer.flag() else size for size in writer.shape)
    ones = [axis for axis, size in enumerate((0, *writer.shape)) if size == 1]
    axes = draw(st.lists(st.sampled_from(ones), min_size=1, unique=True)) if ones else None
    axes = axes and [axis - writer.rank if writer.flag() else axis for axis in axes]
    if axes is None:
        writer.fewest = 2  # of one item the batch would go too
        return writer.end(writer.add("Identity", [writer.add("Squeeze", ["input"])]))
    if writer.opset < 13:
        return writer.end(writer.add("Squeeze", ["input"], axes=axes))
    return writer.end(writer.add("Squeeze", ["input", writer.whole(*axes)]))


def unsqueeze(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(11, 13, 20))
    count = writer.integer(1, 2)
    rank = writer.rank + count
    places = draw(st.lists(st.integers(0, rank - 1), min_size=count, max_size=count, unique=True))
    axes = [place - rank if writer.flag() else place for place in places]
    if writer.opset < 13:
        return writer.end(writer.add("Unsqueeze", ["input"], axes=axes))
    return writer.end(writer.add("Unsqueeze", ["input", writer.whole(*axes)]))


def shape(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(13, 15, 20))
    begin, end = (writer.one_of(None, *range(-writer.rank - 1, writer.rank + 2)) for _ in "ab")
    limits = {"start": begin, "end": end} if writer.opset >= 15 else {}
    sizes = writer.add("Shape", ["input"], **limits)
    count = writer.add("Shape", [sizes])  # how many sizes there are
    chosen = writer.add(
        "Gather", [writer.add("Concat", [sizes, count], axis=0), writer.constant(np.asarray(-1))], axis=0
    )
    return writer.end(writer.add("Mul", ["input", writer.as_number(chosen)]))


def size(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    row = (
        writer.add("Slice", ["input", writer.whole(0), writer.whole(1), writer.whole(0)]) if writer.flag() else "input"
    )
    count = writer.as_number(writer.add("Size", [row]))
    return writer.end(writer.add("Div", ["input", count]))


DRAWINGS: dict[str, Drawing] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": slicing,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
