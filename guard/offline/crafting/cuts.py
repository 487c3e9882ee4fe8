"""What is cut of a guard: attacks with fewer items to fit on than its recipe wants, in words for its report."""

from __future__ import annotations

from collections.abc import Sequence

from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.job.job import Job

MAX_NAMED_ITEMS = 4  # attacks that are named


def crafting_cuts(job: Job, crafted: Sequence[CraftedSet]) -> tuple[str, ...]:
    """Return in words which attacks have fewer verified items to fit on than the recipe wants, and why."""
    wanted = job.recipe.items
    few = sorted((len(found), found.name) for found in crafted if len(found) < wanted)
    if not few:
        return ()
    named = ", ".join(f"{name} {items:,}" for items, name in few[:MAX_NAMED_ITEMS])
    more = ", …" if len(few) > MAX_NAMED_ITEMS else ""
    why = (
        "all that the data yield"
        if job.craft_items is None
        else f"each is tried on {job.craft_items:,} clean items (--craft-items)"
    )
    return (
        f"{len(few)} of {len(crafted)} attacks have fewer than the {wanted:,} verified items to fit on that the recipe "
        f"wants ({named}{more}): {why}",
    )
