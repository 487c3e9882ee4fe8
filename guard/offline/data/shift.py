"""Natural shift: a change that the world makes to an item without any attack.

Rule 1: a shifted item lies in the unit box and on the data's grid, as any other does: the shift is all there is to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from guard.offline.data.grid import Images, snap


@dataclass(frozen=True)
class Shift:
    """Natural shift of one kind at one severity."""

    kind: str
    severity: str  # in words
    change: Callable[[Images], Images]  # one item in unit space, channels first, to be clipped and snapped
    channels: tuple[int, ...] | None = None  # numbers of channels that it is defined for; None: any

    @property
    def name(self) -> str:
        return f"{self.kind} {self.severity}"


def shifted(shift: Shift, images: Images, grid: int | None) -> Images | None:
    """Shift unit-space items [item, ...]; None where the shift is not defined for their channels."""
    if shift.channels is not None and images.shape[1] not in shift.channels:
        return None
    moved = np.stack([shift.change(item) for item in images]) if len(images) else images
    return snap(moved.clip(0, 1).astype(np.float32), grid)
