"""Streams of items to one model, for tests of the query memory and its benchmark: clients', and searches'."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIZE = 32  # of a frame's height and width
MARGIN = 64  # around a scene, for the camera to move in


def snapped(frames: NDArray[np.floating]) -> Floats:
    """The frames in [0, 1] as 8 bits tell them."""
    return (np.rint(np.clip(frames, 0, 1) * 255) / 255).astype(np.float32)


def scene(generator: np.random.Generator, *, size: int = SIZE + MARGIN) -> Floats:
    """A picture [3, height, width] with the spectrum of natural ones: amplitude falls with frequency."""
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.fft2(generator.standard_normal((3, size, size))) / frequencies
    spectrum = spectrum + 2 * spectrum.mean(axis=0)  # channels go together
    picture = np.fft.ifft2(spectrum).real
    return np.clip(0.5 + 0.2 * picture / picture.std(), 0, 1).astype(np.float32)


def still_camera(scene: Floats, count: int, generator: np.random.Generator, *, noise: float = 2 / 255) -> Floats:
    """Frames of one place, each with the sensor's own noise."""
    part = scene[:, :SIZE, :SIZE]
    return snapped(part + generator.normal(0, noise, (count, *part.shape)))


def panning_camera(scene: Floats, count: int, generator: np.random.Generator, *, pixels: float) -> Floats:
    """Frames of a camera that moves to and fro by so many pixels a frame, with a sensor's noise."""
    frames = []
    for frame in range(count):
        way = (frame * pixels) % (2 * MARGIN - 2)
        place = min(way, 2 * MARGIN - 2 - way)
        left, share = int(place), place % 1
        columns = scene[:, :SIZE, left : left + SIZE + 1]
        frames.append((1 - share) * columns[..., :-1] + share * columns[..., 1:])
    return snapped(np.stack(frames) + generator.normal(0, 1 / 255, (count, 3, SIZE, SIZE)))


def exposure(scene: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Frames of one place whose light changes, slowly and to and fro."""
    light = 0.75 + 0.25 * np.sin(np.arange(count) / 20)
    frames = scene[:, :SIZE, :SIZE] * light[:, None, None, None]
    return snapped(frames + generator.normal(0, 1 / 255, frames.shape))


def line_search(start: Floats, end: Floats, count: int) -> Floats:
    """A binary search on the line between two pictures, as a decision-based attack makes it."""
    low, high, asked = 0.0, 1.0, []
    for step in range(count):
        middle = (low + high) / 2
        asked.append((1 - middle) * start + middle * end)
        low, high = (middle, high) if step % 3 else (low, middle)
    return snapped(np.stack(asked))


def coordinate_search(
    start: Floats, budget: float, generator: np.random.Generator, fools: Callable[[Floats], float], *, count: int
) -> tuple[Floats, Floats]:
    """A search like SimBA: one value after another is moved up or down and stays so where the margin falls.

    Returns what was asked [query, channel, height, width], and the margins [query]; it ends where one is below 0.

    Source: Guo et al. 2019, arXiv:1905.07121, in the pixel base; here every step moves one channel of 2 by 2 pixels.
    """
    best, margin = start, fools(start)
    asked, margins = [start], [margin]
    while len(asked) < count and margin >= 0:
        channel, row, column = (int(generator.integers(0, most)) for most in start.shape)
        for sign in (1, -1):
            tried = best.copy()
            tried[channel, row : row + 2, column : column + 2] += np.float32(sign * budget)
            tried = snapped(tried)
            found = fools(tried)
            asked.append(tried)
            margins.append(found)
            if found < margin:
                best, margin = tried, found
                break
    return np.stack(asked[:count]), np.asarray(margins[:count], dtype=np.float32)
