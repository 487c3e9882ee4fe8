"""Order of axes of image files: channels first or last, decided by what the model takes, or refused.

Rule 1: of the two readings of a file, one is taken only if the model's input, or else the shape itself, rules out the
other; two that remain are an error that names `--data-layout`.
Example: [32, 32, 3] for a model of [3, 32, 32] is channels last; [3, 3, 3] could be either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guard.errors import ConfigError, DataError

FIRST, LAST = "NCHW", "NHWC"
DATA_LAYOUTS = (FIRST, LAST)
MAX_PICTURE_CHANNELS = 4  # grey, grey and alpha, RGB, RGBA
IN_WORDS = {FIRST: "channels first", LAST: "channels last"}

Shape = tuple[int, ...]
Wire = Sequence[int | None]  # one item as the model takes it, None for a size that it leaves open


@dataclass(frozen=True)
class Reading:
    """A reading of a file's axes, and the item [channel, height, width] that it gives."""

    layout: str
    item: Shape

    @property
    def is_picture(self) -> bool:
        return self.item[0] <= MAX_PICTURE_CHANNELS

    @property
    def is_square(self) -> bool:
        return self.item[1] == self.item[2]

    def __str__(self) -> str:
        channels, height, width = self.item
        return f"{channels} channels of {height} x {width} ({IN_WORDS[self.layout]}, {self.layout})"


def checked_layout(layout: str | None) -> str | None:
    """Return a layout that a user has named, or None. Raises ConfigError for an unknown one."""
    if layout not in (None, *DATA_LAYOUTS):
        raise ConfigError(f"--data-layout {layout!r}; wanted {' or '.join(DATA_LAYOUTS)}")
    return layout


def channels_first(sizes: Shape, layout: str) -> Shape:
    """Return the sizes [channel, height, width] of an item whose axes are in a layout."""
    return (sizes[2], *sizes[:2]) if layout == LAST else sizes


def readings(sizes: Shape) -> tuple[Reading, ...]:
    return tuple(Reading(layout, channels_first(sizes, layout)) for layout in DATA_LAYOUTS)


def layout_for(sizes: Shape, item: Shape, source: str) -> str:
    """Return the layout in which sizes give the item [channel, height, width]. Raises DataError for none, or both."""
    fitting = [reading for reading in readings(sizes) if reading.item == item]
    if not fitting:
        raise DataError(f"{source}: one item has shape {list(sizes)}; the model takes {list(item)}")
    if len(fitting) > 1 and max(sizes) > 1:
        raise unclear(sizes, fitting, source)
    return fitting[0].layout


def layout_of_data(sizes: Shape, wire: Wire | None, source: str, *, either: bool) -> str:
    """Return the layout of a file's items, by what the model takes; `either`: its wire may have channels last.

    Raises:
        DataError: two readings remain.
    """
    possible = [reading for reading in readings(sizes) if wire is None or fits(reading, wire, either=either)]
    likely = possible or list(readings(sizes))  # where none fits, the better one is what the model's error shows
    for preferred in ([one for one in likely if one.is_picture], [one for one in likely if one.is_square]):
        if len(likely) > 1 and len(preferred) == 1:
            likely = preferred
    if len(likely) > 1 and max(sizes) > 1 and possible:
        raise unclear(sizes, likely, source)
    (other,) = [reading for reading in readings(sizes) if reading.layout != likely[0].layout]
    if possible and other.is_picture and not likely[0].is_picture:
        raise DataError(
            f"{source}: items of shape {list(sizes)} would be {likely[0]} for this model, which takes {shown(wire)}; "
            f"{other} looks right: bring data or model into another order, or settle it with --data-layout"
        )
    return likely[0].layout


def fits(reading: Reading, wire: Wire, *, either: bool) -> bool:
    """Tell whether a model of this wire can take a reading's items, channels first or, where allowed, last."""
    orders = [reading.item, (*reading.item[1:], reading.item[0])] if either else [reading.item]
    return any(
        len(order) == len(wire) and all(w in (None, size) for size, w in zip(order, wire, strict=True))
        for order in orders
    )


def unclear(sizes: Shape, found: Sequence[Reading], source: str) -> DataError:
    return DataError(
        f"{source}: items of shape {list(sizes)} are {' or '.join(map(str, found))}; say which with --data-layout "
        f"{' or '.join(DATA_LAYOUTS)}"
    )


def shown(wire: Wire | None) -> str:
    return "any" if wire is None else str(["any" if size is None else size for size in wire])
