"""Attacked items of several attacks together, each with the attack that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True, eq=False)
class Attacked(Generic[T]):
    """Attacked items (as images, as evidence or as scores) and the attack that made each.

    For example the scores of five items, of which PGD made three: `Attacked(scores, ("pgd",) * 3 + ("fgsm",) * 2)`.
    """

    items: T
    by: tuple[str, ...]  # [item] the attack, as the call that makes it

    def __len__(self) -> int:
        return len(self.by)

    def seen_as(self, items: U) -> Attacked[U]:
        """Return the same items in the same order in another form, such as their scores in place of their images."""
        return Attacked(items, self.by)

    @property
    def names(self) -> NDArray[np.str_]:
        """Names of the attack that made each item [item]."""
        return np.asarray(self.by, dtype=np.str_)

    def shares(self) -> NDArray[np.float64]:
        """Return weights [item] that add up to one: every attack weighs the same, however many items it has."""
        names, index, counts = np.unique(self.names, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (len(names) * counts[index]), dtype=np.float64)


def chosen(
    attacked: Attacked[NDArray[np.float32]], index: Sequence[int] | NDArray[np.int64]
) -> Attacked[NDArray[np.float32]]:
    """Return the attacked images at `index`."""
    return Attacked(attacked.items[index], tuple(attacked.by[place] for place in index))
