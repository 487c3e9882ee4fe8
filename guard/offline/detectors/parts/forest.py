"""Random forest, fitted by scikit-learn and written as tensor operations that give the very same shares.

Rule 1: a forest decides by comparisons with float64 thresholds; each is written as the largest float32 not above it, by
which a float32 number is decided alike.

How it works. Every tree is padded to as many inner nodes and leaves as the largest has. A comparison at each inner node
says left (1) or right (0). Of a leaf it is known at which nodes its path goes left (+1) or right (-1); the one leaf
whose every node agrees is the item's. For a path of two lefts and one right the sum of comparisons times signs is 2
there, and less at any other leaf. The score is the mean of the leaves' shares of attacked items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

NO_LEAF_STEPS = 1e6  # lefts that a leaf which only pads a tree wants: no item has as many


class Forest(nn.Module):
    """Module that maps numbers [item, feature] to a forest's share of trees that say "attacked" [item], 0 to 1."""

    def __init__(self, features: Tensor, thresholds: Tensor, signs: Tensor, lefts: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)  # [tree x node]: which number each node looks at
        self.register_buffer("thresholds", thresholds)  # [tree x node]
        self.register_buffer("signs", signs)  # [tree, node, leaf]: 1 left, -1 right, 0 not on the way
        self.register_buffer("lefts", lefts)  # [tree, leaf]: lefts on the way
        self.register_buffer("shares", shares)  # [tree, leaf]
        self.features: Tensor
        self.thresholds: Tensor
        self.signs: Tensor
        self.lefts: Tensor
        self.shares: Tensor

    def forward(self, numbers: Tensor) -> Tensor:
        trees, nodes, _ = self.signs.shape
        left = (numbers.index_select(1, self.features) <= self.thresholds).to(numbers.dtype)
        reached = torch.einsum("itn,tnl->itl", left.unflatten(1, (trees, nodes)), self.signs)
        at_leaf = (reached > self.lefts - 0.5).to(numbers.dtype)
        return (at_leaf * self.shares).sum(dim=(1, 2)) / trees


def fitted_forest(
    numbers: Tensor, attacked: Tensor, weights: Tensor, *, trees: int, depth: int, seed: int
) -> RandomForestClassifier:
    """Return scikit-learn's own forest that tells attacked items: numbers [item, feature], truth and weights [item]."""
    forest = RandomForestClassifier(trees, max_depth=depth, random_state=seed, n_jobs=1)
    return forest.fit(numbers.numpy(), attacked.numpy(), sample_weight=weights.double().numpy())


def forest_of(forest: RandomForestClassifier) -> Forest:
    """Write a fitted forest of two classes as tensors."""
    parts = [list(leaves_of(one.tree_)) for one in forest.estimators_]
    trees = [one.tree_ for one in forest.estimators_]
    inner = [np.flatnonzero(tree.children_left >= 0) for tree in trees]
    nodes, leaves = max(1, *map(len, inner)), max(map(len, parts))
    features = np.zeros((len(trees), nodes), np.int64)
    thresholds = np.zeros((len(trees), nodes), np.float32)
    signs = np.zeros((len(trees), nodes, leaves), np.float32)
    lefts = np.full((len(trees), leaves), NO_LEAF_STEPS, np.float32)
    shares = np.zeros((len(trees), leaves), np.float32)
    for place, (tree, own, found) in enumerate(zip(trees, inner, parts, strict=True)):
        features[place, : len(own)] = tree.feature[own]
        thresholds[place, : len(own)] = not_above(tree.threshold[own])
        slot = {node: index for index, node in enumerate(own.tolist())}
        for leaf, (path, share) in enumerate(found):
            for node, goes_left in path:
                signs[place, slot[node], leaf] = 1.0 if goes_left else -1.0
            lefts[place, leaf] = sum(goes_left for _, goes_left in path)
            shares[place, leaf] = share
    arrays: tuple[NDArray[Any], ...] = (features.ravel(), thresholds.ravel(), signs, lefts, shares)
    return Forest(*map(torch.from_numpy, arrays))


def leaves_of(tree: Any) -> Iterator[tuple[tuple[tuple[int, bool], ...], float]]:
    """Yield each leaf's path, as inner nodes and whether it goes left there, and its share of attacked items."""
    ahead: list[tuple[int, tuple[tuple[int, bool], ...]]] = [(0, ())]
    while ahead:
        node, path = ahead.pop()
        if tree.children_left[node] < 0:
            of_each = tree.value[node][0]
            yield path, float(of_each[1] / of_each.sum())
            continue
        ahead.append((int(tree.children_right[node]), (*path, (node, False))))
        ahead.append((int(tree.children_left[node]), (*path, (node, True))))


def not_above(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 that is not above each float64 threshold."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)
