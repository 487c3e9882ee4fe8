"""Axes of one kind of input: what they count, and the orders in which they travel.

Rule 1: inside the guard channels come first; another order is a matter of files and of the wire alone.
Example: an item [channel, time] travels as NCT in that order, as NTC with its channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guard.errors import DataError

CHANNELS_LAST = frozenset({"NHWC", "NTC"})


@dataclass(frozen=True)
class Axes:
    """The axes of one item, and the words of its kind."""

    kind: str
    names: tuple[str, ...]  # on the inside
    layouts: tuple[str, ...]  # orders in which items travel, with the batch in front; the guard's own first
    module_layouts: tuple[str, ...]  # those of them that a torch module may take
    ends: tuple[str, str]  # what the least and the greatest value are called
    pictures: bool = False  # whether bytes run from black to white, whatever the model's range

    @property
    def part(self) -> str:
        """What the first axis counts: each has a range of values of its own, or all share one."""
        return self.names[0]

    @property
    def places(self) -> int:
        """The number of axes along which neighbours are near each other."""
        return len(self.names) - 1

    @property
    def last(self) -> str | None:
        """The layout with channels last, or None where there are no channels."""
        return next((layout for layout in self.layouts if layout in CHANNELS_LAST), None)


IMAGES = Axes("images", ("channel", "height", "width"), ("NCHW", "NHWC"), ("NCHW",), ("black", "white"), pictures=True)
SERIES = Axes("series", ("channel", "time"), ("NCT", "NTC"), ("NCT", "NTC"), ("least", "most"))
VECTORS = Axes("vectors", ("feature",), ("NC",), ("NC",), ("least", "most"))
BY_COUNT = {len(axes.names): axes for axes in (IMAGES, SERIES, VECTORS)}
LAYOUTS = tuple(layout for axes in (IMAGES, SERIES, VECTORS) for layout in axes.layouts)


def axes_of(shape: Sequence[object]) -> Axes:
    """Return the axes of items of a shape, the batch left out. Raises DataError where no kind has so many."""
    if len(shape) not in BY_COUNT:
        known = ", ".join(f"{axes.kind} [{', '.join(axes.names)}]" for axes in BY_COUNT.values())
        raise DataError(f"one item has shape {list(shape)}, of {len(shape)} axes; wanted {known}")
    return BY_COUNT[len(shape)]


def to_wire(layout: str, axes: int) -> tuple[int, ...]:
    """Return the order in which a batch's `axes` axes travel, as numpy and torch transpose by it."""
    return (0, *range(2, axes), 1) if layout in CHANNELS_LAST else tuple(range(axes))


def from_wire(layout: str, axes: int) -> tuple[int, ...]:
    """Return the order that undoes `to_wire`."""
    return (0, axes - 1, *range(1, axes - 1)) if layout in CHANNELS_LAST else tuple(range(axes))


def in_layout(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return an item's sizes, channels first, in the order of a layout."""
    return (*sizes[1:], sizes[0]) if layout in CHANNELS_LAST else sizes


def channels_first(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return an item's sizes in the order of a layout with its channels first."""
    return (sizes[-1], *sizes[:-1]) if layout in CHANNELS_LAST else sizes
