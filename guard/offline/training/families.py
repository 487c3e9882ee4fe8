"""Families of the crafted attacks, and which of them can be left out."""

from __future__ import annotations

from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.splits import Split
from guard.offline.training.build import Prepared
from guard.offline.training.family_scores import MIN_FAMILIES, MIN_JUDGED_ITEMS

MIN_LEARNED_ITEMS = 20  # attacked items of the other families; with fewer no head can learn, and the family stays


def families_of(prepared: Prepared) -> list[str]:
    """Return the families of the crafted attacks, each once."""
    return list(dict.fromkeys(str(found.family) for found in prepared.crafted))


def leaving(prepared: Prepared) -> list[str]:
    """Return the families that can be left out: enough of their items judge, and enough of the others' are learned."""
    found = [family for family in families_of(prepared) if can_leave(prepared, family)]
    return found if len(found) >= MIN_FAMILIES else []


def can_leave(prepared: Prepared, family: str) -> bool:
    """Return whether a family can be left out."""
    judged = sum(count_of(one, prepared, Split.COMBINER) for one in prepared.crafted if str(one.family) == family)
    return judged >= MIN_JUDGED_ITEMS and learned_without(prepared, family) >= MIN_LEARNED_ITEMS


def learned_without(prepared: Prepared, family: str) -> int:
    """Return how many attacked items of the other families there are to learn from, in the split that has fewer."""
    others = [one for one in prepared.crafted if str(one.family) != family]
    return min(sum(count_of(one, prepared, split) for one in others) for split in (Split.HEADS, Split.COMBINER))


def count_of(crafted: CraftedSet, prepared: Prepared, split: Split) -> int:
    """Return how many items of a crafted set are in a split."""
    return len(crafted.select(prepared.data.splits, split))
