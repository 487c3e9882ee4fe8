"""Squared distances from latents to fixed points that keep their digits, however far from zero the points lie.

Rule 1: nothing large is subtracted from something nearly as large. |a|^2 + |b|^2 - 2ab loses every digit where two
points lie closer to each other than a few thousandths of their length.

How it works. Everything is measured from the points' mean, and each item from an anchor near it: with y = item - anchor
a squared distance is |point - anchor|^2 - 2 y.point, plus y.(y + 2 anchor), which is the same for all points. The first
term is a table, computed once in double precision. So what is rounded is of the size |y| |point|, and not |item|^2.

Example: an item at 100.01 and points at 100 and 100.02, measured from their mean, 100.01: the item is at 0, the points
at -0.01 and 0.01. With the first point as its anchor y is 0.01; the table holds 0 and 0.0004, less 2 y times the points
that is 0.0002 and 0.0002, and y (y + 2 anchor) is -0.0001: both squared distances are 0.0001.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class Squares(NamedTuple):
    """Squared distances in two parts that add up, of which the first alone says which point is nearer."""

    ranked: Tensor  # [item, point]
    common: Tensor  # [item]

    @property
    def whole(self) -> Tensor:
        """Squared distances [item, point]."""
        return self.ranked + self.common[:, None]


class AnchoredPoints(nn.Module):
    """Fixed points [point, feature] with anchors [anchor, feature], both measured from the same middle.

    A `penalty` [anchor, point] is added to the squared distances of the items that are measured from an anchor.
    """

    def __init__(self, points: Tensor, anchors: Tensor, penalty: Tensor | None = None) -> None:
        super().__init__()
        table = torch.cdist(anchors.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        table = table if penalty is None else table + penalty
        self.register_buffer("points", points.contiguous())
        self.register_buffer("anchors", anchors.contiguous())
        self.register_buffer("table", table.to(points.dtype))  # [anchor, point], squared distances and penalty
        self.points: Tensor
        self.anchors: Tensor
        self.table: Tensor

    def nearest_anchor(self, items: Tensor) -> Tensor:
        """Return the index of the anchor nearest to each item [item, feature]; any other would do, less precisely."""
        half = 0.5 * self.anchors.square().sum(dim=1)
        return torch.addmm(half, items, -self.anchors.T).argmin(dim=1)

    def forward(self, items: Tensor, anchor: Tensor) -> Squares:
        """Return the squared distances of items [item, feature], measured from the anchors of these indices [item]."""
        from_anchor = embedding(anchor, self.anchors)
        y = items - from_anchor
        ranked = embedding(anchor, self.table) - y @ (2.0 * self.points.T)
        return Squares(ranked, (y * (y + 2.0 * from_anchor)).sum(dim=1))

    def nearest_distances(self, items: Tensor, count: int) -> Tensor:
        """Return the distances [item, count] to the nearest points, in no order; those few from the differences."""
        ranked = self(items, self.nearest_anchor(items)).ranked
        chosen = ranked.topk(count, dim=1, largest=False, sorted=False).indices
        distances: Tensor = torch.linalg.vector_norm(embedding(chosen, self.points) - items[:, None], dim=2)
        return distances


def spread_anchors(points: Tensor, count: int) -> Tensor:
    """Choose anchors [anchor, feature] among points measured from their mean, so that every point lies near one.

    The first is the point nearest to the mean, each next the one farthest from all before it.
    """
    exact = points.double()
    chosen = [int(exact.square().sum(dim=1).argmin())]
    nearest = (exact - exact[chosen[0]]).square().sum(dim=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (exact - exact[chosen[-1]]).square().sum(dim=1))
    return points[chosen]
