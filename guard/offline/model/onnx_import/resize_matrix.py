"""ONNX Resize along one axis as a fixed matrix [place after, place before].

How it works. Each place after the resize lies somewhere between places before it: `coordinates` says where. Its number
is a sum of those near by: the nearest one, two by their distance, or four by a cubic curve; `weights` says with which
factors. Places beyond an edge are that edge.

Example: 2 places by a factor of 2, linear and half_pixel, lie at -0.25, 0.25, 0.75 and 1.25 of those before: the rows
of the matrix are 1 0, 3/4 1/4, 1/4 3/4 and 0 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LINEAR_DISTANCE, CUBIC_DISTANCE = 1.0, 2.0  # in places, how far a curve reads on either side
TIE = np.float32(1e-6)  # what ONNX Runtime takes for half way between two places, though its rounding misses it
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


@dataclass(frozen=True)
class Stretch:
    """An axis of a resize: its lengths, the factor that the file gives, and the part that tf_crop_and_resize reads."""

    before: int
    after: int
    factor: np.float32
    start: np.float32 = ZERO
    end: np.float32 = ONE

    @property
    def moves(self) -> bool:
        """Tell whether the axis changes; by a factor of 1 it does not in ONNX Runtime, whatever part it reads."""
        return bool(self.factor != 1)


@dataclass(frozen=True)
class Rule:
    """How a resize finds numbers: the node's attributes, by ONNX's names for their values."""

    mode: str  # nearest | linear | cubic
    places: str  # half_pixel, align_corners, ...
    rounding: str = "round_prefer_floor"  # or by_factor: ceil where the axis shrinks, else floor
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


def coordinates(stretch: Stretch, places: str) -> NDArray[np.float32]:
    """Return where each place after lies before, in single precision as ONNX Runtime counts: ties depend on it."""
    place = np.arange(stretch.after, dtype=np.float32)
    last, factor = np.float32(stretch.before - 1), stretch.factor
    match places:
        case "asymmetric":
            return place / factor
        case "align_corners":
            return place * last / np.float32(max(stretch.after - 1, 1))
        case "pytorch_half_pixel" if stretch.after == 1:
            return np.zeros(1, np.float32)
        case "tf_half_pixel_for_nn":
            return (place + HALF) / factor
        case "tf_crop_and_resize" if stretch.after == 1:
            return np.full(1, HALF * (stretch.start + stretch.end) * last, np.float32)
        case "tf_crop_and_resize":
            span = (stretch.end - stretch.start) * last
            return stretch.start * last + place * span / np.float32(stretch.after - 1)
        case "half_pixel_symmetric":
            missing = ONE - np.float32(stretch.after) / (factor * np.float32(stretch.before))
            return np.float32(stretch.before) * HALF * missing + (place + HALF) / factor - HALF
    return (place + HALF) / factor - HALF


def is_outside(stretch: Stretch, rule: Rule) -> NDArray[np.bool_]:
    """Tell which places after take the value for what is beyond the image: only tf_crop_and_resize has any."""
    at = coordinates(stretch, rule.places)
    return (rule.places == "tf_crop_and_resize") & ((at < 0) | (at > stretch.before - 1))


def nearest_places(stretch: Stretch, rule: Rule) -> NDArray[np.int64]:
    """Return for each place after the one before that it repeats."""
    at = coordinates(stretch, rule.places)
    floor = np.floor(at)
    match rule.rounding:
        case "floor":
            found = floor
        case "ceil":
            found = np.ceil(at)
        case "by_factor":
            found = np.ceil(at) if stretch.factor < 1 else np.trunc(at)
        case "round_prefer_ceil":
            found = floor + (at - floor >= HALF - TIE)
        case _:
            found = floor + (at - floor > HALF + TIE)
    return np.clip(found.astype(np.int64), 0, stretch.before - 1)


def matrix(stretch: Stretch, rule: Rule) -> Floats:
    """Return the matrix of a linear or cubic resize; rows of places beyond the image are zero."""
    at = coordinates(stretch, rule.places).astype(np.float64)
    if rule.mode == "linear" and not rule.antialias:
        at = np.clip(at, 0, stretch.before - 1)
    shrunk = min(1.0, float(stretch.factor)) if rule.antialias else 1.0
    reach = (LINEAR_DISTANCE if rule.mode == "linear" else CUBIC_DISTANCE) / shrunk
    first = np.floor(at - reach).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * reach) + 3)
    factors = weights((taps - at[:, None]) * shrunk, rule)
    if rule.exclude_outside:
        factors = np.where((taps >= 0) & (taps < stretch.before), factors, 0.0)
    total = factors.sum(1, keepdims=True)
    factors = factors / np.where(total == 0, 1.0, total)
    found = np.zeros((stretch.after, stretch.before))
    rows = np.broadcast_to(np.arange(stretch.after)[:, None], taps.shape)
    np.add.at(found, (rows, np.clip(taps, 0, stretch.before - 1)), factors)
    found[is_outside(stretch, rule)] = 0.0
    return found


def weights(distance: Floats, rule: Rule) -> Floats:
    """Return the factor of a place at that distance: a triangle, or Keys' cubic curve with the rule's coefficient."""
    far = np.abs(distance)
    if rule.mode == "linear":
        return np.maximum(0.0, LINEAR_DISTANCE - far)
    a = rule.cubic_coefficient
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    beyond = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return np.where(far <= 1, near, np.where(far < CUBIC_DISTANCE, beyond, 0.0))
