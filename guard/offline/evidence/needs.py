"""The seam of every kind of evidence: a need is a hashable value that says with which pass it comes.

A detector names needs; `gather` meets them all at once. Two detectors that share one pay once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from guard.offline.denoisers.stand_in import StandIn

# The pass that a need is met by: the one forward over the items themselves; a forward over variants of them, all kinds
# together; the backward of the first.
Pass = Literal["plain", "rows", "backward"]


class Need(Protocol):
    """A kind of evidence, what it costs an item, and what an attacker has to know of it."""

    rides: ClassVar[Pass]
    compiles: ClassVar[bool]  # into ONNX; what does not is asked for while fitting only
    comparable: ClassVar[bool]  # one item's is near another's where the two are alike: pixels and gradients are not

    @property
    def rows_per_item(self) -> int:
        """Rows of a further forward pass."""
        ...

    @property
    def backwards(self) -> int:
        """Backward passes over one row."""
        ...

    @property
    def brings(self) -> tuple[Need, ...]:
        """Other needs that come with this one at no further cost."""
        ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """What an attacker differentiates in place of its steps."""
        ...

    def __hash__(self) -> int: ...


Evidence = Mapping[Need, Tensor]


def take(evidence: Evidence, index: Tensor) -> Mapping[Need, Tensor]:
    """Some of the items."""
    return {need: value[index] for need, value in evidence.items()}
