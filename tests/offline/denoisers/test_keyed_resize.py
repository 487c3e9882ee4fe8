"""Keyed resizing: the number comes from the item and the key alone, and is the same in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.denoisers.keyed_resize import KeyedResize, pattern
from guard.offline.model.onnx_export.export import lower


def images(items: int, seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, (items, 3, 9, 7), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


def test_every_pattern_is_used_and_another_key_gives_others() -> None:
    numbers = KeyedResize().numbers(images(2000))
    counts = torch.bincount(numbers, minlength=16)
    assert len(counts) == 16
    assert 70 < int(counts.min()) <= int(counts.max()) < 190  # 125 of each, give or take five deviations
    others = KeyedResize(key=1).numbers(images(2000))
    assert 0.02 < float((numbers == others).float().mean()) < 0.12
    assert not torch.equal(KeyedResize()(images(20)), KeyedResize(key=1)(images(20)))


def test_one_step_of_one_value_may_give_another_pattern() -> None:
    items = images(200)
    moved = items.clone()
    moved[:, 1, 4, 4] = torch.where(moved[:, 1, 4, 4] > 0.5, moved[:, 1, 4, 4] - 1 / 255, moved[:, 1, 4, 4] + 1 / 255)
    assert float((KeyedResize().numbers(items) != KeyedResize().numbers(moved)).float().mean()) > 0.5


def test_the_number_is_exactly_the_same_in_onnx_runtime() -> None:
    class Numbers(nn.Module):
        def forward(self, items: Tensor) -> tuple[Tensor]:
            return (KeyedResize().numbers(items),)

    program = lower(Numbers(), images(3), input_name="items", output_names=("number",))
    session = InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"items": images(3000, seed=1).numpy()})
    np.testing.assert_array_equal(found, KeyedResize().numbers(images(3000, seed=1)).numpy())


def test_a_pattern_shrinks_a_line_as_torch_does_and_repeats_its_border() -> None:
    line = torch.rand(11, generator=torch.Generator().manual_seed(0)).double()
    for to, at in ((8, 0), (8, 3), (10, 1)):
        small = nn.functional.interpolate(line[None, None], to, mode="linear", align_corners=False)[0, 0]
        wanted = torch.cat([small[:1].expand(at), small, small[-1:].expand(11 - to - at)])
        np.testing.assert_allclose(pattern(11, to, at) @ line.numpy(), wanted.numpy(), atol=1e-12)


def test_an_attackers_derivative_is_the_mean_over_all_patterns() -> None:
    denoiser, items = KeyedResize(count=4), 0.2 + 0.6 * images(2)
    points = items.clone().requires_grad_()
    weights = torch.rand(items.shape, generator=torch.Generator().manual_seed(3))
    (slope,) = torch.autograd.grad((denoiser(points) * weights).sum(), points)
    down, across = (torch.from_numpy(denoiser.matrices(size, axis)).float() for axis, size in enumerate((9, 7)))
    wanted = torch.stack([a.T @ weights @ b for a, b in zip(down, across, strict=True)]).mean(dim=0)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("settings", "named"), [({"count": 1}, "count = 1"), ({"smallest": 1.0}, "smallest = 1.0")])
def test_a_setting_without_a_meaning_is_named(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        KeyedResize(**settings)
