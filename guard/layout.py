"""Order of axes of files of images and series: channels first or last, decided by what the model takes, or refused.

Rule 1: of the two readings of a file, one is taken only if the model's input, or else a picture's shape, rules out the
other; two that remain are an error that names `--data-layout`.
Example: [32, 32, 3] for a model of [3, 32, 32] is channels last; [3, 3, 3] could be either. Series [128, 3] for a model
of [128, 3] could be 128 steps or 128 channels, unless the model's first layer says which axis has the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from guard.axes import CHANNELS_LAST, IMAGES, SERIES, Axes, axes_of, channels_first, from_wire, in_layout
from guard.errors import ConfigError, DataError
from guard.items_on_disk import Items, ItemsOnDisk

FIRST, LAST = IMAGES.layouts
DATA_LAYOUTS = (*IMAGES.layouts, *SERIES.layouts)
MAX_PICTURE_CHANNELS = 4  # grey, grey and alpha, RGB, RGBA

Shape = tuple[int, ...]
Wire = Sequence[int | None]  # one item as the model takes it, None for a size that it leaves open


@dataclass(frozen=True)
class Reading:
    """A reading of a file's axes, and the item that it gives, channels first."""

    layout: str
    item: Shape

    @property
    def is_picture(self) -> bool:
        return axes_of(self.item).pictures and self.item[0] <= MAX_PICTURE_CHANNELS

    @property
    def is_square(self) -> bool:
        return axes_of(self.item).pictures and self.item[1] == self.item[2]

    def __str__(self) -> str:
        channels, *places = self.item
        steps = "" if axes_of(self.item).pictures else " steps"
        return f"{channels} channels of {' x '.join(map(str, places))}{steps} ({order_text(self.layout)})"


def order_text(layout: str) -> str:
    return f"channels {'last' if layout in CHANNELS_LAST else 'first'}, {layout}"


def checked_layout(layout: str | None) -> str | None:
    """Return a layout that a user has named, or None. Raises ConfigError for an unknown one."""
    if layout not in (None, *DATA_LAYOUTS):
        raise ConfigError(
            f"--data-layout {layout!r}; wanted {' or '.join(IMAGES.layouts)} of images, {' or '.join(SERIES.layouts)} "
            "of series"
        )
    return layout


def with_channels(images: Items, layout: str | None, axes: Axes) -> tuple[Items, str | None]:
    """Return inputs with an axis of channels where their file leaves out the only one, and the order of their axes."""
    if axes.last is None or images.ndim != len(axes.names):
        return images, layout
    if isinstance(images, ItemsOnDisk):
        return images.mapped((*images.shape[1:], 1), images.dtype, lambda some: some[..., None]), axes.last
    return images[..., None], axes.last


def channels_in_front(images: NDArray[Any], layout: str | None, shape: Shape, source: str) -> NDArray[Any]:
    """Return inputs of a file as [item, channel, ...] for a model that takes items of this shape, channels first.

    What is of another number of axes comes back as it is.

    Raises:
        ConfigError: the layout is one of another kind of input.
        DataError: no order of the axes gives such items, or both do.
    """
    axes = axes_of(shape)
    if not axes.places:
        return images
    layout = layout_of_kind(layout, axes, source)
    if images.ndim == len(axes.names):
        images, layout = images[..., None], axes.last
    if images.ndim != len(shape) + 1:
        return images
    found = layout or layout_for(images.shape[1:], shape, source)
    return images.transpose(from_wire(found, images.ndim))


def layout_of_kind(layout: str | None, axes: Axes, source: str) -> str | None:
    """Return a layout that is one of this kind of input's, or None. Raises ConfigError where it is another kind's."""
    if layout not in (None, *axes.layouts):
        raise ConfigError(
            f"{source}: the model takes {axes.kind} [item, {', '.join(axes.names)}], and the layout {layout} is none "
            f"of theirs; wanted --data-layout {' or '.join(axes.layouts)}"
        )
    return layout


def readings(sizes: Shape) -> tuple[Reading, ...]:
    return tuple(Reading(layout, channels_first(sizes, layout)) for layout in axes_of(sizes).layouts)


def layout_for(sizes: Shape, item: Shape, source: str) -> str:
    """Return the layout in which sizes give the item [channel, height, width]. Raises DataError for none, or both."""
    fitting = [reading for reading in readings(sizes) if reading.item == item]
    if not fitting:
        raise DataError(f"{source}: one item has shape {list(sizes)}; the model takes {list(item)}")
    if len(fitting) > 1 and max(sizes) > 1:
        raise unclear(sizes, fitting, source)
    return fitting[0].layout


def layout_of_data(
    sizes: Shape, wire: Wire | None, source: str, *, either: bool, wire_layout: str | None = None
) -> str:
    """Return the layout of a file's items, by what the model takes; `either`: its wire may have channels last.

    `wire_layout` is the order of the model's own axes, where that is known.

    Raises:
        DataError: two readings remain.
    """
    possible = [
        reading for reading in readings(sizes) if wire is None or fits(reading, wire, wire_layout, either=either)
    ]
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


def fits(reading: Reading, wire: Wire, wire_layout: str | None = None, *, either: bool) -> bool:
    """Tell whether a model of this wire can take a reading's items, channels first or, where allowed, last."""
    own = axes_of(reading.item).layouts
    layouts = (wire_layout,) if wire_layout in own else own if either else own[:1]
    orders = [in_layout(reading.item, layout) for layout in layouts]
    return any(
        len(order) == len(wire) and all(w in (None, size) for size, w in zip(order, wire, strict=True))
        for order in orders
    )


def unclear(sizes: Shape, found: Sequence[Reading], source: str) -> DataError:
    return DataError(
        f"{source}: items of shape {list(sizes)} are {' or '.join(map(str, found))}; say which with --data-layout "
        f"{' or '.join(axes_of(sizes).layouts)}"
    )


def shown(wire: Wire | None) -> str:
    return "any" if wire is None else str(["any" if size is None else size for size in wire])
