"""What holds for every denoiser: one listed in the table is tested by being listed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from guard.offline.denoisers import table
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median, lower_median
from guard.offline.denoisers.table import DENOISERS

BY_NAME = pytest.mark.parametrize("name", list(DENOISERS))
SHAPES = {"colour": (5, 3, 9, 7), "grey": (5, 1, 8, 8), "vector": (5, 20)}
BY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@BY_SHAPE
@BY_NAME
def test_box_and_shape(name: str, shape: tuple[int, ...]) -> None:
    for inputs in (images(shape), torch.zeros(shape), torch.ones(shape), images(shape).round()):
        cleaned = DENOISERS[name]()(inputs)
        assert cleaned.shape == inputs.shape
        assert cleaned.dtype == inputs.dtype
        assert bool(((cleaned >= 0) & (cleaned <= 1)).all())


@BY_SHAPE
@BY_NAME
def test_deterministic_and_changes_nothing(name: str, shape: tuple[int, ...]) -> None:
    inputs = images(shape)
    before = inputs.clone()
    first, second = DENOISERS[name]()(inputs), DENOISERS[name]()(inputs)
    assert torch.equal(first, second)
    assert torch.equal(inputs, before)
    assert not torch.equal(first, inputs), "it does something"


@BY_SHAPE
@BY_NAME
def test_an_item_does_not_depend_on_its_batch(name: str, shape: tuple[int, ...]) -> None:
    inputs, denoiser = images(shape), DENOISERS[name]()
    assert torch.equal(torch.cat([denoiser(item[None]) for item in inputs]), denoiser(inputs))


@BY_NAME
def test_a_flat_image_is_already_clean(name: str) -> None:
    for value in (0.0, 1.0):
        inputs = torch.full((2, 3, 8, 8), value)
        assert torch.equal(DENOISERS[name]()(inputs), inputs)


@BY_NAME
def test_an_attacker_has_a_gradient(name: str) -> None:
    inputs = images((2, 1, 8, 8)).requires_grad_()
    (slope,) = torch.autograd.grad(DENOISERS[name]()(inputs).sum(), inputs)
    assert float(slope.abs().sum()) > 0


@BY_NAME
def test_values_are_the_same_with_a_gradient(name: str) -> None:
    inputs, denoiser = images((2, 3, 8, 8)), DENOISERS[name]()
    torch.testing.assert_close(denoiser(inputs.clone().requires_grad_()).detach(), denoiser(inputs), rtol=0, atol=1e-6)


@BY_NAME
def test_frozen_and_printable(name: str) -> None:
    denoiser: Any = DENOISERS[name]()
    assert denoiser.name == name
    assert eval(repr(denoiser), vars(table)) == denoiser
    assert len({denoiser, DENOISERS[name]()}) == 1
    with pytest.raises(FrozenInstanceError):
        setattr(denoiser, fields(denoiser)[0].name, 3)


# Median.


@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_median_is_numpys_lower_median_inside(window: int) -> None:
    inputs = images((2, 3, 12, 11)).double()
    windows = sliding_window_view(inputs.numpy(), (window, window), axis=(2, 3)).reshape(*_inner(window), -1)
    reference = np.quantile(windows, 0.5, axis=-1, method="lower")
    before = (window - 1) // 2
    found = Median(window)(inputs)[:, :, before : before + reference.shape[2], before : before + reference.shape[3]]
    assert np.array_equal(found.numpy(), reference)


def _inner(window: int) -> tuple[int, ...]:
    return (2, 3, 12 - window + 1, 11 - window + 1)


@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_median_reflects_at_the_border(window: int) -> None:
    inputs = images((1, 1, 9, 9)).double()
    before, after = (window - 1) // 2, window // 2
    padded = np.pad(inputs.numpy()[0, 0], (before, after), mode="reflect")
    reference = np.quantile(sliding_window_view(padded, (window, window)), 0.5, axis=(-1, -2), method="lower")
    assert np.array_equal(Median(window)(inputs).numpy()[0, 0], reference)


@pytest.mark.parametrize("window", [2, 3])
def test_median_of_vectors_runs_along_the_features(window: int) -> None:
    inputs = images((4, 10)).double()
    padded = np.pad(inputs.numpy(), ((0, 0), ((window - 1) // 2, window // 2)), mode="reflect")
    reference = np.quantile(sliding_window_view(padded, window, axis=1), 0.5, axis=-1, method="lower")
    assert np.array_equal(Median(window)(inputs).numpy(), reference)


def test_median_removes_a_lone_pixel_and_keeps_an_edge() -> None:
    inputs = torch.zeros(1, 1, 9, 9)
    inputs[..., 5:] = 1.0
    lone = inputs.clone()
    lone[0, 0, 4, 2] = 1.0
    assert torch.equal(Median(3)(lone), inputs)


@pytest.mark.parametrize("count", range(1, 10))
def test_lower_median_of_any_number(count: int) -> None:
    values = [images((50,), seed=i).mul(6).round() for i in range(count)]
    reference = torch.stack(values).sort(dim=0).values[(count - 1) // 2]
    assert torch.equal(lower_median(values), reference)


# Bit depth.


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bit_depth_has_that_many_levels_and_is_idempotent(bits: int) -> None:
    inputs = images((4, 3, 32, 32))
    once = BitDepth(bits)(inputs)
    assert len(once.unique()) == 2**bits
    assert torch.equal(BitDepth(bits)(once), once)
    assert float((once - inputs).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


def test_fewer_bits_are_further_away() -> None:
    inputs = images((4, 3, 32, 32))
    errors = [float((BitDepth(bits)(inputs) - inputs).abs().mean()) for bits in (1, 2, 4, 8)]
    assert all(more > less for more, less in pairwise(errors))
