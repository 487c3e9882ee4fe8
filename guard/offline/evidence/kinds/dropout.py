"""Evidence from dropout left on: the model's answers with some of its values set to zero, as while it learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.evidence.kinds.variants import OwnPass, RowNeed
from guard.offline.model.classifier import Classifier
from guard.offline.model.graph.cut import after
from guard.offline.model.graph.dropouts import dropouts


@dataclass(frozen=True)
class DropoutLogits(RowNeed):
    """Logits of the model [item, row, class] with dropout left on, the same values dropped for every item.

    Rows begin at the last tap before the first dropout, so that they cost less than the forwards that they count as.

    Source: Gal and Ghahramani 2016, arXiv:1506.02142. They draw for every forward; ours are drawn once, so that an
    item's evidence is the same at every request.
    """

    rows: int = 20
    seed: int = 0

    @property
    def rows_per_item(self) -> int:
        return self.rows

    def lacks(self, classifier: Classifier) -> str | None:
        if classifier.dropouts:
            return None
        if dropouts(classifier.graph.graph):
            return "the model drops only values that do not lie item by item: time lies in front of the items"
        return "the model has no dropout"

    def own_pass(self, classifier: Classifier) -> OwnPass:
        return DropoutPass(classifier, self)


class DropoutPass(OwnPass):
    """Rows with dropout left on, from the last tap before the first dropout, or from the item."""

    def __init__(self, classifier: Classifier, need: DropoutLogits) -> None:
        super().__init__()
        if (lacking := need.lacks(classifier)) is not None:
            raise ConfigError(f"{need!r} cannot be asked: {lacking}")
        order = {node.name: place for place, node in enumerate(classifier.graph.graph.nodes)}
        first = min(order[name] for name in classifier.dropouts)
        reached = [tap for tap in classifier.taps if order[tap.node] <= first]
        begins = max(reached, key=lambda tap: order[tap.node]).node if reached else next(iter(order))
        self.joins = next((tap.name for tap in reached if tap.node == begins), None)
        self.rows = need.rows
        generator = torch.Generator().manual_seed(need.seed)
        drops = {
            name: Drop(dropout.kept(need.rows, shape_at(classifier, name), generator))
            for name, dropout in classifier.dropouts.items()
        }
        self.at_once = drops.pop(begins, None)  # where the layer at which rows begin is dropped itself
        self.after = after(classifier.graph, begins, drops)

    def forward(self, images: Tensor, begun: Mapping[str, Tensor]) -> Tensor:
        """Return the logits [item, row, class] of unit-space images [item, ...]."""
        layer = images if self.joins is None else begun[self.joins]
        rows = layer.repeat(self.rows, *[1] * (layer.ndim - 1))
        rows = rows if self.at_once is None else self.at_once(rows, rows)
        logits: Tensor = self.after(rows, rows)
        by_row: Tensor = logits.unflatten(0, (self.rows, -1))
        return by_row.transpose(0, 1)


class Drop(nn.Module):
    """Module that keeps of each row's layer [row x item, ...] what `kept` says [row, 1, ...]."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)
        self.kept: Tensor

    def forward(self, layer: Tensor, companion: Tensor) -> Tensor:
        del companion
        by_row: Tensor = layer.unflatten(0, (len(self.kept), -1))
        return (by_row * self.kept).flatten(0, 1)


def shape_at(classifier: Classifier, node: str) -> tuple[int, ...]:
    """Return the shape of one item's layer at a node of the graph."""
    (found,) = [one for one in classifier.graph.graph.nodes if one.name == node]
    return tuple(int(size) for size in found.meta["val"].shape[1:])
