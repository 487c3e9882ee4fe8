"""What holds for every denoiser: one listed in the table is tested by being listed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onnxruntime import InferenceSession
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.data.kind_names import KindName
from guard.offline.denoisers import table
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.dct_quantisation import DctQuantisation, cosines
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.learned import Learned
from guard.offline.denoisers.median import Median, lower_median
from guard.offline.denoisers.non_local_means import NonLocalMeans
from guard.offline.denoisers.table import DENOISERS
from guard.offline.denoisers.total_variation import TotalVariation, divergence, slopes
from guard.offline.model.onnx_export.export import lower
from tests.offline.denoisers.prepared import prepared

BY_NAME = pytest.mark.parametrize("name", list(DENOISERS))
SHAPES = {"colour": (5, 3, 9, 7), "grey": (5, 1, 8, 8), "series": (5, 2, 18), "vector": (5, 20)}
KINDS: dict[str, KindName] = {"colour": "images", "grey": "images", "series": "series", "vector": "vectors"}
SMALL = {
    "one column": (5, 1, 8, 1),
    "one row": (5, 1, 1, 8),
    "two by two": (5, 3, 2, 2),
    "two times": (5, 2, 2),
    "one time": (5, 2, 1),
    "one feature": (5, 1),
}
SMALL_KINDS: dict[int, KindName] = {4: "images", 3: "series", 2: "vectors"}  # by the axes of a batch
BY_SMALL_SHAPE = pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{what}")
        for name, make in DENOISERS.items()
        for what, shape in SMALL.items()
        if SMALL_KINDS[len(shape)] in make().kinds and not isinstance(make(), Learned)
    ],
)
BY_SHAPE = pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{what}")
        for name, make in DENOISERS.items()
        for what, shape in SHAPES.items()
        if KINDS[what] in make().kinds
    ],
)


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ready(name: str, shape: tuple[int, ...]) -> Denoiser:
    """A denoiser of items of this shape; one that is a network has learned a little."""
    return prepared(name, tuple(shape[1:]))


def tolerance(name: str) -> float:
    """How far a batch may move an item's values: convolutions of several items add up in another order."""
    return 1e-6 if isinstance(DENOISERS[name](), Learned) else 0.0


@BY_SHAPE
def test_box_and_shape(name: str, shape: tuple[int, ...]) -> None:
    for inputs in (images(shape), torch.zeros(shape), torch.ones(shape), images(shape).round()):
        cleaned = ready(name, shape)(inputs)
        assert cleaned.shape == inputs.shape
        assert cleaned.dtype == inputs.dtype
        assert bool(((cleaned >= 0) & (cleaned <= 1)).all())


@BY_SHAPE
def test_deterministic_and_changes_nothing(name: str, shape: tuple[int, ...]) -> None:
    inputs = images(shape)
    before = inputs.clone()
    first, second = ready(name, shape)(inputs), ready(name, shape)(inputs)
    assert torch.equal(first, second)
    assert torch.equal(inputs, before)
    faint = 0.4 + 0.04 * inputs  # some keep what differs much
    assert not torch.equal(ready(name, shape)(faint), faint), "it does something"


@BY_SHAPE
def test_an_item_does_not_depend_on_its_batch(name: str, shape: tuple[int, ...]) -> None:
    inputs, denoiser = images(shape), ready(name, shape)
    assert torch.allclose(
        torch.cat([denoiser(item[None]) for item in inputs]), denoiser(inputs), rtol=0, atol=tolerance(name)
    )


@pytest.mark.parametrize("name", [name for name, make in DENOISERS.items() if not isinstance(make(), Learned)])
def test_a_flat_image_is_already_clean(name: str) -> None:
    for value in (0.0, 1.0):
        inputs = torch.full((2, 3, 8, 8), value)
        torch.testing.assert_close(DENOISERS[name]()(inputs), inputs, rtol=0, atol=1e-6)


@BY_NAME
def test_an_attacker_has_a_gradient(name: str) -> None:
    inputs = images((2, 1, 8, 8)).requires_grad_()
    (slope,) = torch.autograd.grad(ready(name, inputs.shape)(inputs).sum(), inputs)
    assert float(slope.abs().sum()) > 0


@BY_NAME
def test_values_are_the_same_with_a_gradient(name: str) -> None:
    inputs, denoiser = images((2, 3, 8, 8)), ready(name, (2, 3, 8, 8))
    torch.testing.assert_close(denoiser(inputs.clone().requires_grad_()).detach(), denoiser(inputs), rtol=0, atol=1e-6)


@BY_SMALL_SHAPE
def test_the_smallest_items_are_cleaned_one_by_one(name: str, shape: tuple[int, ...]) -> None:
    inputs, denoiser = images(shape), ready(name, shape)
    cleaned = denoiser(inputs)
    assert cleaned.shape == inputs.shape
    assert bool(((cleaned >= 0) & (cleaned <= 1)).all())
    assert torch.equal(torch.cat([denoiser(item[None]) for item in inputs]), cleaned)


@pytest.mark.slow
@BY_SMALL_SHAPE
def test_onnx_runtime_cleans_the_smallest_items_alike(name: str, shape: tuple[int, ...]) -> None:
    test_onnx_runtime_cleans_alike(name, shape)


@pytest.mark.slow
@BY_SHAPE
def test_onnx_runtime_cleans_alike(name: str, shape: tuple[int, ...]) -> None:
    denoiser = TotalVariation(steps=3) if name == "total_variation" else ready(name, shape)  # a step is as the next

    class Cleaning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = denoiser.network if isinstance(denoiser, Learned) else None

        def forward(self, items: Tensor) -> tuple[Tensor]:
            return (denoiser(items),)

    program = lower(Cleaning(), images(shape), input_name="items", output_names=("clean",))
    inputs = torch.cat([images(shape, seed=1), 0.4 + 0.04 * images(shape, seed=2)])
    session = InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"items": inputs.numpy()})
    np.testing.assert_allclose(found, denoiser(inputs).numpy(), rtol=0, atol=2e-5)


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


@pytest.mark.parametrize("window", [3, 5, 8])
@pytest.mark.parametrize("sides", [(2, 2), (1, 4), (4, 1), (3, 2)])
def test_median_of_a_window_beyond_the_map_reflects_over_and_over(window: int, sides: tuple[int, int]) -> None:
    inputs = images((1, 1, *sides)).double()
    reach, taller = ((window - 1) // 2, window // 2), [window if side > 1 else 1 for side in sides]
    padded = np.pad(inputs.numpy()[0, 0], [reach if side > 1 else (0, 0) for side in sides], mode="reflect")
    reference = np.quantile(sliding_window_view(padded, taller), 0.5, axis=(-1, -2), method="lower")
    assert np.array_equal(Median(window)(inputs).numpy()[0, 0], reference)


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


# Non-local means.


def test_non_local_means_is_the_weighted_mean_written_out() -> None:
    inputs = 0.5 + 0.1 * images((1, 2, 7, 9)).double()
    search, patch, strength = 5, 3, 0.05
    image = inputs[0].numpy()
    wide = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    wanted = np.zeros_like(image)
    for i, j in np.ndindex(7, 9):
        weights, values = [], []
        for di, dj in np.ndindex(search, search):
            apart = []
            for a, b in np.ndindex(patch, patch):  # of the patch, what lies inside the image
                row, column = i + a - 1, j + b - 1
                if 0 <= row < 7 and 0 <= column < 9:
                    other = wide[:, row + di, column + dj]
                    apart.append(((other - image[:, row, column]) ** 2).mean())
            weights.append(np.exp(-np.mean(apart) / strength**2))
            values.append(wide[:, i + di, j + dj])
        wanted[:, i, j] = np.average(values, axis=0, weights=weights)
    found = NonLocalMeans(search, patch, strength)(inputs)[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_non_local_means_keeps_an_edge_and_removes_grain() -> None:
    clean = torch.zeros(1, 1, 24, 24)
    clean[..., 12:] = 0.8
    grainy = (0.1 + clean + 0.02 * (images((1, 1, 24, 24)) - 0.5)).clamp(0, 1)
    found = NonLocalMeans(strength=0.02)(grainy) - 0.1
    assert float((found - clean).abs().mean()) < 0.5 * float((grainy - 0.1 - clean).abs().mean())
    assert float((found[..., 12] - found[..., 11]).min()) > 0.75


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: NonLocalMeans(search=4), "search = 4"),
        (lambda: NonLocalMeans(patch=1), "patch = 1"),
        (lambda: NonLocalMeans(strength=0.0), "strength = 0.0"),
        (lambda: TotalVariation(weight=-1.0), "weight = -1.0"),
        (lambda: TotalVariation(steps=0), "steps = 0"),
        (lambda: DctQuantisation(quality=0), "quality = 0"),
        (lambda: DctQuantisation(quality=101), "quality = 101"),
    ],
)
def test_a_setting_without_a_meaning_is_named(make: Callable[[], Denoiser], setting: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(setting)):
        make()


# Total variation.


def test_total_variation_comes_near_the_least() -> None:
    """The objective, which is convex: no other way to lower it is left after many steps."""
    inputs, weight = 0.3 + 0.4 * images((1, 1, 6, 7)).double(), 0.1

    def objective(values: Tensor) -> Tensor:
        down, across = slopes(values)
        lengths = (down.square() + across.square() + 1e-16).sqrt()
        return lengths.sum() + (values - inputs).square().sum() / (2 * weight)

    found = TotalVariation(weight, steps=3000)(inputs)
    free = found.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=1e-4)
    for _ in range(500):
        optimiser.zero_grad()
        objective(free).backward()
        optimiser.step()
    least = float(objective(found))
    assert least <= float(objective(free).detach()) + 1e-4
    values = [float(objective(TotalVariation(weight, steps)(inputs))) for steps in (1, 3, 10, 30, 100)]
    assert all(later < earlier for earlier, later in pairwise(values))
    assert least < 0.7 * float(objective(inputs))


def test_divergence_is_minus_the_adjoint_of_slopes() -> None:
    values, down, across = (images((1, 2, 5, 6), seed).double() for seed in range(3))
    down[:, :, -1], across[..., -1] = 0, 0
    rise, run = slopes(values)
    torch.testing.assert_close((rise * down + run * across).sum(), -(values * divergence(down, across)).sum())


# Quantised cosine coefficients.


@pytest.mark.parametrize("quality", [20, 50, 75, 90])
@pytest.mark.parametrize("channels", [1, 3])
def test_quantised_coefficients_are_a_jpeg_files(channels: int, quality: int) -> None:
    smooth = torch.nn.functional.interpolate(images((1, channels, 4, 5)), (32, 40), mode="bicubic").clamp(0, 1)
    levels = (smooth * 255).round().byte()[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    PIL.Image.fromarray(levels.squeeze()).save(file, "JPEG", quality=quality, subsampling=0)
    read = np.asarray(PIL.Image.open(file), dtype=np.float32).reshape(levels.shape)
    given = torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255
    found = DctQuantisation(quality)(given)[0].permute(1, 2, 0).numpy() * 255
    moved = np.abs(read - levels).mean()
    assert moved >= 0.3
    assert np.abs(found - read).mean() <= 0.1 * moved + 0.8  # a file's colours and values are rounded to whole levels


def test_cosines_are_orthonormal() -> None:
    np.testing.assert_allclose(cosines() @ cosines().T, np.eye(8), atol=1e-12)


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
