"""Wire values part by part: the same to the last bit as all at once, and checked across parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from guard import array_room
from guard.arrays import to_wire
from guard.errors import DataError
from guard.manifest import InputSpec

SPEC = InputSpec("input", "FP32", (3, 4, 5), (-2.0, -1.0, 0.0), (2.0, 3.0, 1.0), 255)
BYTES = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
VECTORS = InputSpec("input", "FP32", (2,), (0.0,), (255.0,), None)


@pytest.fixture(params=[1, 500, 2**25], ids=["an item each", "two items each", "one part"])
def part_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_room, "PART_BYTES", request.param)


@pytest.mark.usefixtures("part_bytes")
def test_parts_are_the_whole() -> None:
    expected = SPEC.box.from_unit(BYTES.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert np.array_equal(to_wire(BYTES, SPEC), expected)
    assert np.array_equal(to_wire(expected, SPEC), expected)
    last = replace(SPEC, layout="NHWC")
    assert np.array_equal(to_wire(BYTES, last), expected.transpose(0, 2, 3, 1))


@pytest.mark.usefixtures("part_bytes")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1.0, 2], [3, 4], [5, 300], [7, -50]], r"span \[-50, 300\].* \[0, 255\]"),
        ([[0.0, 0.5], [0.25, 0.5], [0.25, 0.75], [1, 1]], r"span \[0, 1\] .*all but black"),
    ],
)
def test_what_only_a_later_part_shows_is_refused(values: list[list[float]], words: str) -> None:
    images: NDArray[np.float32] = np.asarray(values, dtype=np.float32)
    with pytest.raises(DataError, match=words):
        to_wire(images, VECTORS)
    sound = np.asarray([[0.0, 0.5], [0.25, 0.5], [0.25, 0.75], [1, 200]], dtype=np.float32)
    assert np.array_equal(to_wire(sound, VECTORS), sound)
