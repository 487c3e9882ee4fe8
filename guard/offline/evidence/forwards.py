"""Forwards that evidence costs: what several detectors need together is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from guard.offline.evidence.gather import distinct, with_brought
from guard.offline.evidence.needs import Need


def forwards_by_need(needs: Iterable[Need]) -> Mapping[Need, float]:
    """Return the forwards of the model that each of these needs costs per item, those that cost something alone.

    For example two detectors that read the input gradient, one of them two denoised rows as well: 1 for the gradient,
    1 for each row. Beside them there is always the forward of the item itself.
    """
    costs = {need: need.backwards + need.rows_per_item + need.forwards for need in distinct(with_brought(needs))}
    return {need: cost for need, cost in costs.items() if cost > 0}


def floor_of(needs: Iterable[Need]) -> float:
    """Return the least that one program with these needs costs, in forwards of the model."""
    return 1 + sum(forwards_by_need(needs).values())
