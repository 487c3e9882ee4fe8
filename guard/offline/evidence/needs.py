"""Seam of every kind of evidence: a need is a hashable value that says with which pass it comes.

A detector names needs, and `gather.py` meets them all at once. Two detectors that share a need pay for it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from guard.offline.denoisers.stand_in import StandIn
from guard.offline.model.classifier import Classifier

# The pass that meets a need. "plain": the one forward over the items themselves; "rows": one forward over all variants
# of them together; "backward": the backward of the plain pass; "second": the forward of another network.
Pass = Literal["plain", "rows", "backward", "second"]


class Need(Protocol):
    """Kind of evidence, with its cost per item and what an attacker has to know of it."""

    rides: ClassVar[Pass]
    compiles: ClassVar[bool]  # whether it has an ONNX form; a need without one is used only while fitting
    comparable: ClassVar[bool]  # whether similar items have similar values; pixels and gradients do not

    @property
    def rows_per_item(self) -> int:
        """Number of rows per item, beside the item itself, that a forward pass runs."""
        ...

    @property
    def backwards(self) -> int:
        """Number of backward passes, each over one row per item."""
        ...

    @property
    def forwards(self) -> float:
        """Forwards of the model that another network costs per item, by multiply-adds."""
        ...

    @property
    def brings(self) -> tuple[Need, ...]:
        """Needs that come with this one at no further cost."""
        ...

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        """Surrogates that an attacker differentiates in place of this need's steps."""
        ...

    def lacks(self, classifier: Classifier) -> str | None:
        """Return what a model does not have that this need reads, as a clause; None where it has all."""
        ...

    def __hash__(self) -> int: ...


class ForwardNeed:
    """What the needs that forward passes meet have in common: no backward, and nothing that comes with them."""

    compiles: ClassVar[bool] = True
    comparable: ClassVar[bool] = True

    @property
    def backwards(self) -> int:
        return 0

    @property
    def forwards(self) -> float:
        return 0.0

    @property
    def brings(self) -> tuple[Need, ...]:
        return ()

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        return ()

    def lacks(self, classifier: Classifier) -> str | None:
        del classifier
        return None


Evidence = Mapping[Need, Tensor]


def take(evidence: Evidence, index: Tensor) -> Mapping[Need, Tensor]:
    """Return the evidence of the items at `index`."""
    return {need: value[index] for need, value in evidence.items()}
