"""The arrays that the page's pictures are drawn from, which no table needs; nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Specimen:
    """An item before and after an attack, with its saliency maps, where the model looked, and what it finds alike."""

    attack: str  # label
    clean: NDArray[np.float32]  # [channel, height, width] or [channel, time] in unit space
    attacked: NDArray[np.float32]
    clean_map: NDArray[np.float32]  # [height, width] or [time], none negative
    attacked_map: NDArray[np.float32]
    before: str  # the model's answers, as classes are called
    after: str
    clean_p: float
    attacked_p: float
    clean_looked: NDArray[np.float32] | None = None  # of the shape of the maps; None where the model has no such maps
    attacked_looked: NDArray[np.float32] | None = None
    nearest: NDArray[np.float32] | None = None  # the clean item that the attacked one is nearest to, for the model
    nearest_class: str = ""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """The contents of the page's pictures: risks of clean, noisy and attacked items, and specimens."""

    thresholds: Mapping[float, float]  # by the promised rate: the largest risk that passes
    clean: Floats
    noise: Floats
    attacks: Mapping[str, Floats]  # by label
    specimens: tuple[Specimen, ...]
    reason: str = ""  # why there are no specimens
