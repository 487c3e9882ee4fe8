"""Augmentation of images that a network of the guard's own learns from: what must not change its answer.

Rule 1: every number comes from the caller's generator; images stay in the unit box.

How it works. Every image is moved by up to an eighth of its sides, and mirrored where that keeps its label. With `wide`
two images in three are changed further, each in one way: turned, moved and scaled; covered by a patch; framed; given
noise; or another brightness and contrast. What covers an image is noise, one saturated colour, or part of another.

For example 128 images of 32 x 32: each is moved by up to 4 pixels; about 43 stay so, 28 are turned by up to 30 degrees,
moved by a further tenth and scaled by 12 %; 21 get a patch of 5 to 12 pixels, 14 a frame of 1 to 3 pixels, 14 noise of
up to 8/255 or four times as much, and 8 another brightness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

SHIFT_DIVISOR = 8  # of a side: how far every image is moved, at most
TURN_FACTOR = math.radians(30)
MOVE_SHARE, SCALE_SHARE = 0.1, 0.12  # of a side; of the size
PATCH_SHARES, FRAME_SHARES = (0.16, 0.38), (0.03, 0.1)  # of a side
NOISE_STEPS = (0.5, 32.0)  # of 255: the largest noise of an image, drawn evenly in its logarithm
BRIGHTNESS_STEP, CONTRAST_SHARE = 0.15, 0.3


@dataclass(frozen=True)
class Draws:
    """Random numbers of one generator, for images [item, channel, height, width] at hand."""

    images: Tensor
    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw evenly from an interval: of this shape, or one number an item [item, 1, 1, 1]."""
        size = shape or (len(self.images), 1, 1, 1)
        unit = torch.rand(size, generator=self.generator, device=self.generator.device)
        return low + (high - low) * unit.to(self.images.device)

    def chance(self, share: float) -> Tensor:
        """Choose this share of the items [item, 1, 1, 1]."""
        return self.uniform(0, 1) < share


def varied(images: Tensor, generator: torch.Generator, *, mirror: bool, wide: bool) -> Tensor:
    """Return augmented unit-space images [item, channel, height, width]; anything else as it is."""
    if images.ndim != 4:
        return images
    draws = Draws(images, generator)
    moved = shifted(draws)
    if mirror:
        moved = torch.where(draws.chance(0.5), moved.flip(3), moved)
    return widely(moved, generator) if wide else moved


def shifted(draws: Draws) -> Tensor:
    """Move each image by whole pixels, its border repeated."""
    images = draws.images
    items, _, height, width = images.shape
    down, across = (max(1, size // SHIFT_DIVISOR) for size in (height, width))
    padded = pad(images, (across, across, down, down), mode="replicate")
    starts = [(draws.uniform(0, 2 * most + 1, items, 1)).long().clamp_max(2 * most) for most in (down, across)]
    rows, columns = (
        start + torch.arange(size, device=images.device) for start, size in zip(starts, (height, width), strict=True)
    )
    item = torch.arange(items, device=images.device)[:, None, None]
    return padded[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def widely(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change two images in three further, each in one way."""
    kind = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    result = images.clone(memory_format=torch.contiguous_format)
    start = 1 / 3
    for change, share in WIDE:
        chosen = ((kind >= start) & (kind < start + share)).nonzero().flatten()
        start += share
        if len(chosen):
            result[chosen] = change(Draws(images[chosen], generator)).clamp(0, 1).to(result.dtype)
    return result


def turned(draws: Draws) -> Tensor:
    """Turn, move and scale each image about its centre, black or its border beyond."""
    angle, scale = (
        part[:, 0, 0, 0]
        for part in (draws.uniform(-TURN_FACTOR, TURN_FACTOR), draws.uniform(1 - SCALE_SHARE, 1 + SCALE_SHARE))
    )
    moves = draws.uniform(-2 * MOVE_SHARE, 2 * MOVE_SHARE, len(draws.images), 2)  # a side is 2 long for affine_grid
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cosine, -sine, moves[:, 0]], dim=1), torch.stack([sine, cosine, moves[:, 1]], dim=1)]
    images = draws.images.contiguous()
    places = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    black, border = (
        grid_sample(images, places, padding_mode=mode, align_corners=False) for mode in ("zeros", "border")
    )
    return torch.where(draws.chance(0.5), black, border)


def patched(draws: Draws) -> Tensor:
    """Cover a rectangle of each image."""
    sizes = draws.images.shape[2:]
    inside = []
    for axis, size in enumerate(sizes):
        length = draws.uniform(PATCH_SHARES[0] * size, PATCH_SHARES[1] * size).round().clamp_min(1)
        start = (draws.uniform(0, 1) * (size - length + 1)).floor()
        places = along(draws.images, axis)
        inside.append((places >= start) & (places < start + length))
    return torch.where(inside[0] & inside[1], cover(draws), draws.images)


def framed(draws: Draws) -> Tensor:
    """Cover the border of each image."""
    sizes = draws.images.shape[2:]
    wide = draws.uniform(FRAME_SHARES[0] * min(sizes), FRAME_SHARES[1] * min(sizes)).round().clamp_min(1)
    outside = [
        (along(draws.images, axis) < wide) | (along(draws.images, axis) >= size - wide)
        for axis, size in enumerate(sizes)
    ]
    return torch.where(outside[0] | outside[1], cover(draws), draws.images)


def along(images: Tensor, axis: int) -> Tensor:
    """Return the places along height (0) or width (1), shaped to broadcast over images."""
    places = torch.arange(images.shape[2 + axis], device=images.device)
    return places[:, None] if axis == 0 else places[None, :]


def cover(draws: Draws) -> Tensor:
    """Draw what covers each image: noise, one saturated colour, or another image."""
    images = draws.images
    noise = draws.uniform(0, 1, *images.shape)
    colour = (draws.uniform(0, 1, *images.shape[:2], 1, 1) < 0.5).to(images.dtype).expand_as(images)
    kind = draws.uniform(0, 3)
    return torch.where(kind < 1, noise, torch.where(kind < 2, colour, images.roll(1, dims=0)))


def noisy(draws: Draws) -> Tensor:
    """Add uniform or Gaussian noise of a size that differs by image."""
    low, high = (math.log(steps / 255) for steps in NOISE_STEPS)
    size, shape = draws.uniform(low, high).exp(), draws.images.shape
    even = draws.uniform(-1, 1, *shape)
    normal = torch.randn(shape, generator=draws.generator, device=draws.generator.device).to(draws.images.device) / 2
    return draws.images + size * torch.where(draws.chance(0.5), even, normal)


def recoloured(draws: Draws) -> Tensor:
    """Change brightness and contrast of each image."""
    mean = draws.images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = draws.uniform(1 - CONTRAST_SHARE, 1 + CONTRAST_SHARE)
    return mean + contrast * (draws.images - mean) + draws.uniform(-BRIGHTNESS_STEP, BRIGHTNESS_STEP)


Change = Callable[[Draws], Tensor]
WIDE: tuple[tuple[Change, float], ...] = (  # with the share of all images that is changed so
    (turned, 0.22),
    (patched, 0.16),
    (framed, 0.11),
    (noisy, 0.11),
    (recoloured, 0.0667),
)
