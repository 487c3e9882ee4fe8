"""Resize gives what ONNX Runtime gives, for every mode and way to place that it runs; see `resize_matrix`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from guard.offline.model.onnx_import.resize_matrix import Rule, Stretch, coordinates, matrix, nearest_places
from tests.offline.model.onnx_import.against_onnx_runtime import by_onnx_runtime, by_table

PLACES = (
    *("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"),
    *("tf_crop_and_resize", "tf_half_pixel_for_nn"),
)
IMAGE = np.random.default_rng(0).normal(size=(1, 2, 7, 6)).astype(np.float32)
FACTORS = ((2, 3), (1.5, 2), (0.5, 0.5), (1.4, 0.7), (0.34, 1), (1 / 7 + 1e-8, 0.2), (2.2, 1))
SIZES = ((14, 6), (9, 10), (2, 5), (3, 12), (1, 1))
REGION = np.asarray([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.1], np.float32)
NEAREST = tuple({"nearest_mode": name} for name in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
SMOOTHED = tuple({"antialias": kind, "exclude_outside": outside} for kind in (0, 1) for outside in (0, 1))
MODES: dict[str, tuple[dict[str, Any], ...]] = {
    "nearest": NEAREST,
    "linear": SMOOTHED,
    "cubic": tuple({**one, "cubic_coeff_a": a} for one in SMOOTHED for a in (-0.75, -0.5)),
}


def outcome(operands: list[Any], opset: int, attributes: dict[str, Any], image: Any = IMAGE) -> str:
    expected = by_onnx_runtime("Resize", image, operands, opset, attributes)
    if expected is None:
        return "not run"
    found = by_table("Resize", image, operands, opset, attributes)
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{attributes}, {operands}")
    return "equal"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("places", PLACES)
def test_every_mode_and_way_to_place(places: str, mode: str) -> None:
    opset = 11 if places == "tf_half_pixel_for_nn" else 19  # which later ones do not have
    outcomes: Counter[str] = Counter()
    for settings in MODES[mode]:
        if opset < 18 and settings.get("antialias"):
            continue
        known = {name: value for name, value in settings.items() if name != "antialias" or opset >= 18}
        attributes = {"mode": mode, "coordinate_transformation_mode": places, "extrapolation_value": 0.3, **known}
        empty = np.empty(0, np.float32)
        region = REGION if places == "tf_crop_and_resize" else empty if opset == 11 else None
        for factors in FACTORS:
            outcomes[outcome([region, np.asarray([1, 1, *factors], np.float32)], opset, attributes)] += 1
        for sizes in SIZES:
            given = [region, empty if opset == 11 else None, np.asarray([1, 2, *sizes])]
            outcomes[outcome(given, opset, attributes)] += 1
    assert outcomes["equal"] >= len(FACTORS) + len(SIZES), outcomes


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_sizes_in_ratio(policy: str) -> None:
    for mode in ("nearest", "linear", "cubic"):
        for sizes in SIZES:
            attributes = {"mode": mode, "axes": [2, 3], "keep_aspect_ratio_policy": policy}
            assert outcome([None, None, np.asarray(sizes)], 18, attributes) == "equal"


@pytest.mark.parametrize("factor", [0.15, 0.4, 0.5, 0.9, 1.3, 2.0])
def test_before_operator_set_11(factor: float) -> None:
    """There was one way to place, and what shrank to the nearest place was rounded up."""
    for mode in ("nearest", "linear"):
        assert outcome([np.asarray([1, 1, factor, 2], np.float32)], 10, {"mode": mode}) == "equal"


@pytest.mark.parametrize("shape", [(2, 3, 9), (1, 2, 4, 5, 3)], ids=["series", "volume"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_series_and_volumes(mode: str, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for places in ("half_pixel", "asymmetric", "align_corners"):
        for factor in (2, 1.5, 0.7):
            factors = np.asarray([1, 1] + [factor] * (len(shape) - 2), np.float32)
            attributes = {"mode": mode, "coordinate_transformation_mode": places}
            assert outcome([None, factors], 13, attributes, image) == "equal"


def test_the_example_of_the_file() -> None:
    stretch = Stretch(2, 4, np.float32(2))
    rule = Rule("linear", "half_pixel")
    assert coordinates(stretch, rule.places).tolist() == [-0.25, 0.25, 0.75, 1.25]
    assert matrix(stretch, rule).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert nearest_places(stretch, Rule("nearest", "half_pixel")).tolist() == [0, 0, 1, 1]
