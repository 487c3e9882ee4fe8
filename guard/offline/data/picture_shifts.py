"""Natural shifts of pictures: what cameras, screens and files do to them, without any attack."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from guard.offline.data.grid import Images
from guard.offline.data.shift import Shift

FILE_STEPS = 255  # steps of a picture's values in a file
MODES = {1: "L", 3: "RGB"}  # Pillow's modes by number of channels


def blurred(radius: float) -> Callable[[Images], Images]:
    """Blur each channel by a Gaussian; `radius` is its standard deviation in pixels."""

    def change(picture: Images) -> Images:
        planes = [Image.fromarray(to_bytes(plane)).filter(ImageFilter.GaussianBlur(radius)) for plane in picture]
        return from_bytes(np.stack([np.asarray(plane) for plane in planes]))

    return change


def brightened(by: float) -> Callable[[Images], Images]:
    return lambda picture: picture + np.float32(by)


def contrasted(factor: float) -> Callable[[Images], Images]:
    """Multiply each value's distance from the picture's mean grey."""

    def change(picture: Images) -> Images:
        mean = picture.mean(dtype=np.float64)
        return np.asarray(mean + factor * (picture - mean), dtype=np.float32)

    return change


def compressed(quality: int) -> Callable[[Images], Images]:
    """Write a picture as JPEG and read it again."""

    def change(picture: Images) -> Images:
        mode = MODES[len(picture)]
        pixels = to_bytes(picture).transpose(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels).save(file, format="JPEG", quality=quality)
        read = np.asarray(Image.open(file))
        return from_bytes(read[None] if mode == "L" else read.transpose(2, 0, 1))

    return change


def to_bytes(picture: Images) -> NDArray[np.uint8]:
    return np.rint(picture * FILE_STEPS).clip(0, FILE_STEPS).astype(np.uint8)


def from_bytes(pixels: NDArray[np.uint8]) -> Images:
    return pixels.astype(np.float32) / np.float32(FILE_STEPS)


PICTURE_SHIFTS: tuple[Shift, ...] = (
    Shift("blur", "0.5 px", blurred(0.5)),
    Shift("blur", "1 px", blurred(1.0)),
    Shift("brightness", "-15%", brightened(-0.15)),
    Shift("brightness", "+15%", brightened(0.15)),
    Shift("contrast", "x 0.7", contrasted(0.7)),
    Shift("contrast", "x 1.3", contrasted(1.3)),
    Shift("JPEG", "quality 90", compressed(90), tuple(MODES)),
    Shift("JPEG", "quality 75", compressed(75), tuple(MODES)),
    Shift("JPEG", "quality 50", compressed(50), tuple(MODES)),
)
