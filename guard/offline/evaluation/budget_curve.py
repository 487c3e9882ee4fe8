"""Detection over the budget: an attack whose budget is a range, in a few parts of that range.

How it works. Each item drew a budget of its own, evenly in its logarithm, so that the parts hold about equally many of
the items tried. Of 300 items that drew 1 to 16/255 about 75 drew 1/255, 75 drew 2 or 3, 75 drew 4 to 7, and 75 more. No
item is attacked anew for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.fusion import Floats
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.findings.evaluation import BudgetPart
from guard.offline.findings.intervals import Promise, Rate, caught_at

MAX_BUDGET_PARTS = 4
EDGE_TOLERANCE = 1e-6  # of an edge: a budget that lies on it belongs to the part above


def budget_curve(
    crafted: CraftedSet, wrong: NDArray[np.bool_], p_value: Floats, promises: Sequence[Promise]
) -> tuple[BudgetPart, ...]:
    """Return the parts of the budgets drawn, the smallest first; none where all items have one budget, or have none.

    `wrong` says which of the items tried [tried] fool the model; `p_value` is of those alone [item].
    """
    tried = np.asarray(crafted.tried_budgets, dtype=np.float64)
    if not len(tried) or not np.isfinite(tried).all() or tried.min() == tried.max():
        return ()
    shares = np.arange(1, MAX_BUDGET_PARTS) / MAX_BUDGET_PARTS
    edges = tried.min() * (tried.max() / tried.min()) ** shares * (1 - EDGE_TOLERANCE)
    of_tried, of_item = (
        edges.searchsorted(budgets, side="right") for budgets in (tried, crafted.budgets.astype(np.float64))
    )
    return tuple(
        BudgetPart(
            low=float(tried[own].min()),
            high=float(tried[own].max()),
            success=Rate.of(wrong[own]),
            caught=caught_at(promises, p_value[of_item == part]),
        )
        for part in range(MAX_BUDGET_PARTS)
        if (own := of_tried == part).any()
    )
