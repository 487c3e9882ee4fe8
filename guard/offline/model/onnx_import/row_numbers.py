"""Places that depend on the row of a batch, as a strided view of flattened memory has them.

Rule 1. A place is first + step * row, by its type and not by trial: only adding and multiplying keep that form.
Rule 2. Each row reads inside its own `step` numbers, or the places are refused.

How it works. torch's exporter writes a strided view of [item, 24, 1, 1] as places in flattened memory: Range(0, items)
times 24, plus 0 to 23. The number of items is not known here, so the range becomes two stand-ins, the rows 0 and 1, and
what is computed from them is seen for both. The axis along which the row changes is the batch; what is left of a place
without its row, 0 to 23, is the pattern that each item reads. A file made for 2 items has the places as numbers, [0 to
23, 24 to 47]: there the batch is the axis along which neighbours lie 24 apart, the length of one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAND_IN_ROWS = 2


@dataclass(frozen=True)
class RowNumber:
    """A whole number first + step * row, for one row of as many as there are."""

    first: int
    step: int
    row: int
    rows: Any  # how many there are: a symbol

    def __add__(self, other: Any) -> RowNumber:
        if isinstance(other, RowNumber) and other.row == self.row and bool(other.rows == self.rows):
            return RowNumber(self.first + other.first, self.step + other.step, self.row, self.rows)
        if not isinstance(other, int | np.integer):
            return NotImplemented
        return RowNumber(self.first + int(other), self.step, self.row, self.rows)

    def __mul__(self, other: Any) -> RowNumber:
        if not isinstance(other, int | np.integer):
            return NotImplemented
        return RowNumber(self.first * int(other), self.step * int(other), self.row, self.rows)

    def __neg__(self) -> RowNumber:
        return self * -1

    def __sub__(self, other: Any) -> RowNumber:
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> RowNumber:
        return (-self).__add__(other)

    __radd__, __rmul__ = __add__, __mul__


@dataclass(frozen=True)
class RowPlaces:
    """What each row reads of its own `step` numbers, and the axis [..., row, ...] of the result that the rows are."""

    pattern: NDArray[np.int64]  # places in a row, without the axis of the rows
    axis: int
    step: int
    axes: int = 1  # leading axes of the operand that count as one


def row_range(rows: Any) -> NDArray[Any]:
    """Return the range from 0 to a number of rows that is not known."""
    found = np.empty(STAND_IN_ROWS, dtype=object)
    found[:] = [RowNumber(0, 1, row, rows) for row in range(STAND_IN_ROWS)]
    return found


def has_rows(values: Any) -> bool:
    return (
        isinstance(values, np.ndarray)
        and values.dtype == object
        and values.size > 0
        and isinstance(values.flat[0], RowNumber)
    )


def row_axis(values: NDArray[Any]) -> int | None:
    """Return the axis along which the rows change; None where it cannot be told any more."""
    for axis in range(values.ndim):
        if values.shape[axis] == STAND_IN_ROWS:
            first, second = (values.take(row, axis).ravel() for row in range(STAND_IN_ROWS))
            if all(isinstance(a, RowNumber) and isinstance(b, RowNumber) and a.row < b.row
                   for a, b in zip(first, second, strict=True)):  # fmt: skip
                return axis
    return None


def row_count(values: NDArray[Any]) -> Any:
    """Return how many rows there are."""
    return values.flat[0].rows


def places_of_rows(index: NDArray[Any], length: Any, axes: int = 1) -> RowPlaces | None:
    """Return what each row reads of an axis of `length` numbers; None where a row reads another's, or all differ."""
    axis = row_axis(index)
    if axis is None:
        return None
    numbers = index.take(0, axis)
    pattern = np.asarray([number.first for number in numbers.flat], np.int64).reshape(numbers.shape)
    steps = {number.step for number in numbers.flat}
    step = steps.pop()
    if steps or step < 1 or not bool(length == row_count(index) * step):
        return None
    return inside(pattern, axis, step, axes)


def places_of_items(index: NDArray[Any], length: int, items: int, axes: int = 1) -> RowPlaces | None:
    """Return the same for places that were written for a fixed number of items."""
    for axis, rows in enumerate(index.shape):
        step = length // rows if rows and rows % items == 0 and length % rows == 0 else 0
        if step and (np.diff(index, axis=axis) == step).all():
            found = inside(np.asarray(index.take(0, axis), np.int64), axis, step, axes)
            if found is not None:
                return found
    return None


def inside(pattern: NDArray[np.int64], axis: int, step: int, axes: int) -> RowPlaces | None:
    fits = bool(((pattern >= 0) & (pattern < step)).all())
    return RowPlaces(pattern, axis, step, axes) if fits else None
