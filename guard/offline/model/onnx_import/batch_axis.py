"""Frees the batch axis of a graph that was exported for a fixed number of items.

Such a file writes the batch as a number into its reshapes. An item's numbers lie side by side, so the batch must come
out where it went in: at the same distance from the end, which is the product of the sizes after it. Where more than one
axis of the target could hold it, an axis that is the batch and nothing else is taken first, then one whose slow part is
the batch (heads are folded into the batch so), then one whose fast part is; the last axis, which holds features, only
where there is no other. Whether that was right is seen when the import is checked against ONNX Runtime with several
items.

How it works. The place of the operand's batch is known: its distance from the end is compared with that of each axis of
the target that divides by the number of items. The axis that fits becomes -1, so that any number of items fits in.

Example: a file made for 4 items reshapes [4, 3, 8, 8] to [4, 192]. After the operand's batch lie 3*8*8 = 192 numbers;
after the target's axis 0, which is 4 as well, lie 192 too, so the target becomes [-1, 192]. With heads,
[4, 6, 10, 8] is reshaped to [24, 10, 8]. After the batch lie 6*10*8 = 480 numbers. No axis of the target is 4, but 24
divides by 4, and each of its 4 slow parts is 6*10*8 = 480 numbers long, so the target becomes [-1, 10, 8].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

ROW_WISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Concat"}


def freed(before: Sequence[int], axis: int, target: Sequence[int], batch: int) -> list[int] | None:
    """Return `target` with -1 where the batch is; None where it does not fit.

    `before` are the operand's sizes with `batch` items, of which sizes[axis] holds them.
    """
    sizes = resolved(before, target)
    after = math.prod(before[axis + 1 :])
    for distance in dict.fromkeys(
        (after * (before[axis] // batch), after)
    ):  # items are the slow part of it, or the fast
        places = [place for place in range(len(sizes)) if sizes[place] % batch == 0]
        alone = [p for p in places if sizes[p] == batch and math.prod(sizes[p + 1 :]) == distance]
        if alone:
            return at(sizes, alone[0])
    for distance in dict.fromkeys((after * (before[axis] // batch), after)):
        slow = [p for p in places if math.prod(sizes[p + 1 :]) * (sizes[p] // batch) == distance]
        fast = [p for p in places if math.prod(sizes[p + 1 :]) == distance]
        for place in (*[p for p in slow if p < len(sizes) - 1], *fast, *slow):
            return at(sizes, place)
    return None


def resolved(before: Sequence[int], target: Sequence[int]) -> list[int]:
    """Return the target's sizes without the 0 that copies a size, and the -1 that stands for the rest."""
    sizes = [before[place] if size == 0 else size for place, size in enumerate(target)]
    rest = math.prod(before) // max(1, math.prod(size for size in sizes if size != -1))
    return [rest if size == -1 else size for size in sizes]


def at(sizes: Sequence[int], place: int) -> list[int]:
    return [-1 if here == place else size for here, size in enumerate(sizes)]


def one_row(constant: NDArray[Any], batch: int) -> NDArray[Any]:
    """Return a constant that was repeated for each of the file's items once; any other as it is."""
    return one_along(constant, batch, 0) if constant.ndim > 1 else constant


def one_along(constant: NDArray[Any], batch: int, axis: int) -> NDArray[Any]:
    """Return a constant with one of its repetitions along an axis."""
    one = constant.take([0], axis)
    return one if batch > 1 and constant.shape[axis] == batch and bool((constant == one).all()) else constant
