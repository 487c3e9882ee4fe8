"""The passage between wire and [0, 1] is one, in numpy and in torch."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from guard.offline.model.unit_space import unit_of, wire_of
from guard.value_box import ValueBox

BOXES = {
    "unit": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (255.0,)),
    "signed": ((-1.0,), (1.0,)),
    "per channel": ((-2.1, 0.0, 1.0), (2.6, 255.0, 3.0)),
}


CASES = [
    (box, layout, dtype)
    for box, layout, dtype in product(BOXES, ("NCHW", "NHWC"), (np.float32, np.float16, np.uint8))
    if dtype is not np.uint8 or min(BOXES[box][0]) >= 0  # no byte is below zero
]


@pytest.mark.parametrize(("box", "layout", "dtype"), CASES)
def test_numpy_and_torch_agree_to_the_bit(box: str, layout: str, dtype: type) -> None:
    values = ValueBox(*BOXES[box], 3, layout, np.dtype(dtype))
    unit = np.random.default_rng(0).random((4, 3, 5, 6), dtype=np.float32)
    if dtype is np.uint8 and box != "bytes":
        unit = np.rint(unit)  # the corners are all that bytes can say of a smaller box
    wire = values.from_unit(unit)
    in_torch = wire_of(torch.from_numpy(unit), values)
    assert wire.shape == ((4, 5, 6, 3) if layout == "NHWC" else (4, 3, 5, 6))
    assert wire.dtype == dtype
    assert np.array_equal(in_torch.numpy(), wire)
    back = unit_of(torch.from_numpy(wire), values)
    assert np.array_equal(back.numpy(), values.to_unit(wire))
    rounding = {np.uint8: 0.5 / 255, np.float16: 1e-3, np.float32: 1e-6}
    assert np.allclose(back, unit, atol=rounding[dtype])


def test_a_vector_has_bounds_for_each_feature() -> None:
    values = ValueBox((0.0, -5.0), (10.0, 5.0), 1, "NC")
    assert values.to_unit(np.asarray([[5.0, 5.0]], np.float32)).tolist() == [[0.5, 1.0]]
    assert values.from_unit(np.asarray([[0.5, 1.0]], np.float32)).tolist() == [[5.0, 5.0]]
