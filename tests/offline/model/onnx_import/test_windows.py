"""Windows by any settings, along one axis or two, give what ONNX Runtime gives: ConvTranspose, Conv, LpPool."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.open_model import Source, open_model
from tests.offline.model.onnx_import.against_onnx_runtime import by_onnx_runtime, by_table
from tests.onnx_files import EXPORTERS, write_onnx

DRAWS = 150
AUTOMATIC = ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")


def windows(rng: Generator, sizes: Any, kernel: Any) -> dict[str, Any]:
    """Attributes of a window: each given or left out, padding by number or by name."""
    attributes: dict[str, Any] = {}
    if rng.random() < 0.7:
        attributes["strides"] = rng.integers(1, 4, len(sizes)).tolist()
    if rng.random() < 0.5:
        attributes["dilations"] = rng.integers(1, 3, len(sizes)).tolist()
    if rng.random() < 0.4:
        attributes["auto_pad"] = str(rng.choice(AUTOMATIC))
    if attributes.get("auto_pad", "NOTSET") == "NOTSET" and rng.random() < 0.5:
        attributes["pads"] = [int(rng.integers(0, length)) for length in (*kernel, *kernel)]
    return attributes


def transposed(rng: Generator) -> tuple[Any, list[Any], dict[str, Any]]:
    """A transposed convolution; what is added behind, and the size of the result, are given or left out."""
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    sizes, kernel = rng.integers(1, 6, axes), rng.integers(1, 4, axes)
    attributes = {"group": groups, **windows(rng, sizes, kernel)}
    strides, dilations = (attributes.get(name, [1] * axes) for name in ("strides", "dilations"))
    if rng.random() < 0.4:
        attributes["output_padding"] = [
            int(rng.integers(0, max(pair))) for pair in zip(strides, dilations, strict=True)
        ]
    if rng.random() < 0.3:
        full = (sizes - 1) * strides + (kernel - 1) * dilations + 1
        attributes["output_shape"] = np.maximum(1, full - rng.integers(-1, 3, axes)).tolist()
    weight, bias = rng.normal(size=(4, 3, *kernel)), rng.normal(size=3 * groups)
    image = rng.normal(size=(2, 4, *sizes))
    return image, [weight, bias if rng.random() < 0.5 else None], attributes


def convolution(rng: Generator) -> tuple[Any, list[Any], dict[str, Any]]:
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    sizes, kernel = rng.integers(3, 9, axes), rng.integers(1, 4, axes)
    attributes = {"group": groups, **windows(rng, sizes, kernel)}
    return rng.normal(size=(2, 4, *sizes)), [rng.normal(size=(6, 4 // groups, *kernel))], attributes


def norm_pool(rng: Generator) -> tuple[Any, list[Any], dict[str, Any]]:
    axes = int(rng.integers(1, 3))
    sizes, kernel = rng.integers(3, 8, axes), rng.integers(1, 4, axes)
    attributes = {"kernel_shape": kernel.tolist(), "p": int(rng.integers(1, 4)), **windows(rng, sizes, kernel)}
    if rng.random() < 0.5:
        attributes["ceil_mode"] = 1
    image = rng.normal(size=(2, 3, *sizes))
    image[0, 0] = 0
    return image, [], attributes


DRAWN = {"ConvTranspose": transposed, "Conv": convolution, "LpPool": norm_pool}


@pytest.mark.parametrize("kind", DRAWN)
def test_windows_by_any_settings(kind: str) -> None:
    """What ONNX Runtime runs is equal or refused by name; what it does not run has no right value."""
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for _ in range(DRAWS):
        image, operands, attributes = DRAWN[kind](rng)
        image = image.astype(np.float32)
        operands = [None if value is None else value.astype(np.float32) for value in operands]
        expected = by_onnx_runtime(kind, image, operands, 20, attributes)
        if expected is None or not expected.size:
            outcomes["not run"] += 1
            continue
        try:
            found = by_table(kind, image, operands, 20, attributes)
        except ModelError as error:
            outcomes[str(error)] += 1
            continue
        outcomes["equal"] += 1
        assert found.shape == expected.shape, (image.shape, attributes)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4, err_msg=str(attributes))
    known = ("strides beyond its kernel", "with dilations")
    assert all(any(word in text for word in (*known, "equal", "not run")) for text in outcomes), outcomes
    assert outcomes["equal"] >= DRAWS // 2, outcomes


class Upwards(nn.Module):
    """A network of series that goes down and up again."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(3, 8, 3, stride=2), nn.ConvTranspose1d(8, 6, 3, stride=2, **settings)
        self.head = nn.Linear(6, 3)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.up(torch.relu(self.down(series)))).mean(2))
        return logits


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_transposed_convolution_of_series_that_is_longer(exporter: str, tmp_path: Path) -> None:
    """nn.ConvTranspose1d with output_padding once was refused with a message of Python's own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Upwards(output_padding=1, padding=1).eval()
    opened = open_model(Source(str(write_onnx(model, tmp_path / "m.onnx", (3, 16), exporter=exporter)), (3, 16)))
    series = torch.rand(3, 3, 16)
    torch.testing.assert_close(opened(series), model(series))
