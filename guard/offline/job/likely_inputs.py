"""Inputs as they would be if a usual mistake had been made with them: other channels, axes or values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.axes import Axes
from guard.features import only_names
from guard.manifest import InputSpec
from guard.offline.data.grid import Images

RANGES_OF_VALUES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-0.5, 0.5))  # of wire values, black and white
# Means and standard deviations by which published models were trained, by number of channels.
NORMALISED: dict[int, tuple[tuple[str, str], ...]] = {
    1: (("0.1307", "0.3081"), ("0.2860", "0.3530")),  # MNIST, Fashion-MNIST
    3: (
        ("0.485,0.456,0.406", "0.229,0.224,0.225"),  # ImageNet
        ("0.4914,0.4822,0.4465", "0.2470,0.2435,0.2616"),  # CIFAR-10
    ),
}

Bound = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LikelyInput:
    """Images after a mistake was undone, what was undone, and what is to be done about it."""

    images: Images
    undone: str
    remedy: str


@dataclass(frozen=True, eq=False)
class NamedBox:
    """A range of wire values, by the flags that set it."""

    flags: str
    low: Bound
    high: Bound


def likely_inputs(images: Images, spec: InputSpec) -> Iterator[LikelyInput]:
    """Yield unit-space images [item, ...] as they would be if each usual mistake were undone.

    Features that each have values of their own, as categories, were not made by such a mistake.
    """
    if not only_names(spec.features):
        return
    if spec.axes.pictures:
        yield from other_axes(images)
    yield LikelyInput(1 - images, "black and white exchanged", "invert the values")
    yield from other_values(images, spec)


def other_axes(images: Images) -> Iterator[LikelyInput]:
    channels, height, width = images.shape[1:]
    if channels == 3:
        yield LikelyInput(images[:, ::-1], "red and blue exchanged", "bring the channels from RGB to BGR, or back")
    if height == width:
        yield LikelyInput(images.transpose(0, 1, 3, 2), "rows and columns exchanged", "transpose the images")
    if 1 < channels == height == width:
        for layout, order in (("NHWC", (0, 3, 1, 2)), ("NCHW", (0, 2, 3, 1))):
            undone = f"the items' axes as {layout}"
            yield LikelyInput(images.transpose(order), undone, f"set --data-layout {layout}")


def other_values(images: Images, spec: InputSpec) -> Iterator[LikelyInput]:
    """Yield pixels, black 0 to white 1, under other ranges of wire values than the one that was set."""
    low, high = spec.box.bounds
    for box in named_boxes(spec.axes, images.shape[1]):
        if not (np.allclose(box.low, low) and np.allclose(box.high, high)):
            moved = (box.low + images * (box.high - box.low) - low) / (high - low)
            remedy = f"set {box.flags}, with the items as uint8 or in that range"
            yield LikelyInput(moved, f"values of {box.flags}", remedy)
    wire = low + images * (high - low)
    if not spec.box.is_unit and wire.min() >= -1e-3 and wire.max() <= 1 + 1e-3:
        remedy = "the items are not in the range that was set; hand them over as uint8, or in that range"
        yield LikelyInput(wire, "values of 0 to 1 taken for black to white", remedy)


def named_boxes(axes: Axes, channels: int) -> Iterator[NamedBox]:
    for low, high in RANGES_OF_VALUES:
        yield NamedBox(f"--range {low:g} {high:g}", np.full(1, low, np.float32), np.full(1, high, np.float32))
    for mean, deviation in NORMALISED.get(channels, ()) if axes.pictures else ():
        means, deviations = (
            np.asarray(text.split(","), dtype=np.float32).reshape(-1, 1, 1) for text in (mean, deviation)
        )
        yield NamedBox(f"--mean {mean} --std {deviation}", -means / deviations, (1 - means) / deviations)
