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
from guard.offline.evidence.kinds.plain import Image
from guard.offline.evidence.needs import Evidence, Need
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
    """Gather the evidence of unit-space images [item, ...] in batches. Raises DataError for no items.

    The images are not copied, and no other evidence is ever held twice: large images are most of the memory.
    """
    if not len(images):
        raise DataError("no items to gather evidence from")
    found: dict[Need, Tensor] = {}
    gathered, size = gathering(gather, images), batch_items(images.shape[1:])
    for start in range(0, len(images), size):
        part = gathered(images[start : start + size])
        for need, value in part.items():
            if need == Image():
                continue
            if need not in found:
                found[need] = torch.empty((len(images), *value.shape[1:]), dtype=value.dtype, device=value.device)
            found[need][start : start + len(value)] = value
        if progress:
            progress(min(start + size, len(images)), len(images))
    order = part.keys()
    return {need: torch.from_numpy(images) if need == Image() else found[need] for need in order}
