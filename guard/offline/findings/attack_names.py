"""The names of attacks and budgets in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.ranges import Amount, largest, smallest
from guard.offline.data.norms import Measure

STEP_TOLERANCE = 1e-5  # in steps of the grid: what a budget drawn for an item, a float32, may be off
SYMBOLS: Mapping[Measure, str] = {"linf": " L∞", "l2": " L2", "l1": " L1", "l0": " L0", "none": ""}


def labels_of(attacks: Sequence[Attack], grid: int | None) -> dict[str, Attack]:
    """Return the attacks by readable labels, of which no two are alike: pgd L∞ 8/255, or of a range 1 to 16/255."""
    found: dict[str, Attack] = {}
    for attack in attacks:
        size = "" if attack.budget is None else f" {range_text(attack.budget, attack.norm, grid)}"
        label = f"{attack.name}{SYMBOLS[attack.norm]}{size}"
        alike = sum(name.split(" #")[0] == label for name in found)
        found[f"{label} #{alike + 1}" if alike else label] = attack
    return found


def range_text(budget: Amount, norm: Measure, grid: int | None) -> str:
    """Return a budget as text, or a range of budgets: 1 to 16/255, 0.25 to 0.75."""
    low, high = (end for end in (smallest(budget), largest(budget)) if end is not None)
    return budgets_text(low, high, norm, grid)


def budgets_text(smallest_budget: float, largest_budget: float, norm: str, grid: int | None) -> str:
    """Return the budgets from one to another as text, in one unit where they share it; one where they are alike."""
    low, high = (size_text(end, norm, grid) for end in (smallest_budget, largest_budget))
    unit = next((mark for mark in (f"/{grid}", "%") if low.endswith(mark) and high.endswith(mark)), "")
    return high if low == high else f"{low.removesuffix(unit)} to {high}"


def size_text(budget: float, norm: str, grid: int | None) -> str:
    """Return a budget as text: 8/255, 0.5 or, as a share of an item's values, 6.0%."""
    return f"{budget:.1%}" if norm == "l0" else spoken_budget(budget, grid if norm == "linf" else None)


def spoken_budget(budget: float, grid: int | None) -> str:
    """Return a budget as a count of grid steps where it is one (8/255), else as a number."""
    if grid is not None and abs(budget * grid - round(budget * grid)) < STEP_TOLERANCE:
        return f"{round(budget * grid)}/{grid}"
    return f"{budget:.3g}"
