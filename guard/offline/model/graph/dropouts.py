"""Notes of where a model dropped values out while it learned, kept at the nodes that it dropped: dropout itself goes.

Rule 1: what a note says is of the node's own values; where these are folded into another layer the note goes too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

DROPPED = "dropped"  # the note's key among a node's own


@dataclass(frozen=True)
class Dropout:
    """Dropout that a model learned with: the share of a node's values set to zero, one by one or as whole channels."""

    share: float
    channels: bool = False

    def kept(self, rows: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw what each of so many rows keeps of a layer [row, 1, *shape]: 0, or 1 / (1 - share)."""
        sizes = (shape[0], *[1] * (len(shape) - 1)) if self.channels else shape
        kept = torch.rand((rows, 1, *sizes), generator=generator) >= self.share
        return kept / (1.0 - self.share)


def dropouts(graph: fx.Graph) -> dict[str, Dropout]:
    """Return the dropouts of a canonical graph by the name of the node that each drops, in the order of the pass."""
    return {node.name: node.meta[DROPPED] for node in graph.nodes if DROPPED in node.meta}
