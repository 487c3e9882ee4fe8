"""Clean items with their labels and hashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeldOut:
    """Clean items that nothing was fitted or calibrated on; unit space."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    name: str
