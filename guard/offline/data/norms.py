"""Norms in which perturbations are measured."""

from __future__ import annotations

from typing import Literal

Norm = Literal["linf", "l2", "l1"]  # the norms that have a ball to project to
# l0: share of an item's values that change; none: no norm bounds it, as for a rotation
Measure = Literal["linf", "l2", "l1", "l0", "none"]
