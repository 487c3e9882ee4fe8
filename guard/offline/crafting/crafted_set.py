"""Crafted set: the verified items of one attack, each with its provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.offline.data.grid import Grid, Images
from guard.offline.data.splits import Split, members


@dataclass(frozen=True)
class Transfer:
    """The answers of a closed model to what an attack made of its student, counted over the items tried."""

    tried: int
    agreed: int  # student and model name the same class of the attacked form
    misled: int  # the student's answer changed
    transferred: int  # and so did the model's

    @staticmethod
    def together(parts: Sequence[Transfer]) -> Transfer:
        """Return the counts of several attacks as one."""
        return Transfer(*(sum(getattr(one, f.name) for one in parts) for f in dataclasses.fields(Transfer)))

    @property
    def share(self) -> float:
        """The transfer rate: the share of the items that mislead the student which fool the model; NaN of none."""
        return self.transferred / self.misled if self.misled else float("nan")


@dataclass(frozen=True, eq=False)
class CraftedSet:
    """Verified items of one attack, as arrays that all run over the same items.

    A noisy item keeps its clean label.
    """

    attack: str  # as the call that makes it
    name: str
    family: str
    norm: str
    budget: float | None  # the largest that an item may have
    grid: Grid
    seed: int
    fingerprint: str  # of the model attacked
    tried_hashes: NDArray[np.str_]  # [tried] the correctly classified items that were attacked, with success or without
    source: NDArray[np.int64]  # [item] place in the images given
    hashes: NDArray[np.str_]  # [item] content hash of the clean item
    labels: NDArray[np.int64]  # [item] true class, and the model's answer to the clean item
    predictions: NDArray[np.int64]  # [item] the model's answer to the attacked item
    clean: Images
    attacked: Images
    noise: Images
    l2: NDArray[np.float32]  # [item] size of the perturbation
    linf: NDArray[np.float32]
    budgets: NDArray[np.float32]  # [item] each item's own; infinite where the attack has none
    tried_budgets: NDArray[np.float32]  # [tried]
    transfer: Transfer | None = None  # where a closed model's student was attacked

    def __len__(self) -> int:
        return len(self.source)

    @property
    def tried(self) -> int:
        return len(self.tried_hashes)

    @property
    def success_rate(self) -> float:
        """Number of verified items over the number of items tried; NaN when none was tried."""
        return len(self) / self.tried if self.tried else float("nan")

    def select(self, splits: Mapping[str, Split], *wanted: Split) -> CraftedSet:
        """Return the items whose clean version is in a wanted split. Raises DataError for an item in no split."""
        kept = members(self.hashes, splits, *wanted)
        per_item = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf", "budgets")
        tried = members(self.tried_hashes, splits, *wanted)
        per_tried = {name: getattr(self, name)[tried] for name in ("tried_hashes", "tried_budgets")}
        return dataclasses.replace(self, **per_tried, **{name: getattr(self, name)[kept] for name in per_item})
