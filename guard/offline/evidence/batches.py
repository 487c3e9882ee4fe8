"""Evidence of many items, gathered in batches that fit into a small memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import DataError
from guard.items_on_disk import Items
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Evidence
from guard.offline.evidence.onnx_gather import gathering

BATCH_ITEMS = 128
VALUES = (
    BATCH_ITEMS * 3 * 32 * 32
)  # in a batch, at most: all evidence of large images would not fit into a small memory
Progress = Callable[[int, int], None]  # (items done, items in all)


def batch_items(shape: Sequence[int]) -> int:
    """Return how many items are gathered or read at once: 128, or down to 4 where an item has many values."""
    return max(4, min(BATCH_ITEMS, VALUES // int(np.prod(shape))))


def one_batch(images: Items) -> Tensor:
    """Return the first images as a tensor, as many as are gathered at once."""
    return torch.from_numpy(images[: batch_items(images.shape[1:])])


def gather_all(gather: Gather, images: NDArray[np.float32], progress: Progress | None = None) -> Evidence:
    """Gather the evidence of unit-space images [item, ...] in batches. Raises DataError for no items."""
    if not len(images):
        raise DataError("no items to gather evidence from")
    parts: list[Evidence] = []
    gathered, size = gathering(gather, images), batch_items(images.shape[1:])
    for start in range(0, len(images), size):
        parts.append(gathered(images[start : start + size]))
        if progress:
            progress(min(start + size, len(images)), len(images))
    return {need: torch.cat([part[need] for part in parts]) for need in parts[0]}
