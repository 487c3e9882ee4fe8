"""The norms in which perturbations are measured."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1"]  # there is a ball of each
# l0: share of an item's values; none: nothing bounds it, a rotation
Measure = Literal["linf", "l2", "l1", "l0", "none"]
