"""The check of a second network's answers: what is better than chance is asked, however rare a class is."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.data.splits import Split
from guard.offline.second.answers import Answers, check_answers, checked_items


@dataclass
class Items:
    """A data set of which every split is all of it; an item is its label, or noise where it is wrong."""

    labels: NDArray[np.int64]
    images: NDArray[np.float32]

    @staticmethod
    def of(positive: float, count: int = 1000) -> Items:
        labels = (np.arange(count) < positive * count).astype(np.int64)
        return Items(labels, labels[:, None].astype(np.float32))

    def part(self, _: Split) -> Items:
        return self

    def take(self, index: slice) -> Items:
        return Items(self.labels[index], self.images[index])

    def in_memory(self) -> Items:
        return self

    def __len__(self) -> int:
        return len(self.labels)


class Named(nn.Module):
    """A network that names what its items say, always one class, or one at random as often as there are such."""

    def __init__(self, kind: str, positive: float = 0.0) -> None:
        super().__init__()
        self.kind, self.positive = kind, positive
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, items: Tensor) -> Tensor:
        if self.kind == "constant":
            items = torch.zeros_like(items)
        elif self.kind == "random":
            items = (torch.rand(items.shape, generator=self.generator) < self.positive).float()
        return torch.cat([1 - items, items], dim=1)


def checked(network: nn.Module, data: Items) -> Answers:
    spec = SimpleNamespace(output=SimpleNamespace(classes=2, labels=()))
    classifier: Any = SimpleNamespace(graph=Named("perfect"), spec=spec)
    some: Any = data
    return check_answers("--second one.onnx", network, classifier, some)


@pytest.mark.parametrize("positive", [0.5, 0.1, 0.05, 0.02])
def test_what_is_right_is_asked_however_rare_a_class_is(positive: float) -> None:
    data = Items.of(positive)
    assert checked(Named("perfect"), data).right == 1.0
    for kind in ("constant", "random"):
        with pytest.raises(ModelError, match=r"chance is .*wanted are at least"):
            checked(Named(kind, positive), data)


def test_where_classes_are_alike_ten_points_are_wanted() -> None:
    assert Answers(1000, 1.0, 1.0, 0.1).wanted == Answers(1000, 1.0, 1.0, 0.5).wanted == pytest.approx(0.1)
    assert Answers(1000, 1.0, 1.0, 0.905).wanted == pytest.approx(0.019)


def test_items_of_one_class_are_told_before_a_training() -> None:
    data: Any = Items.of(0.0)
    with pytest.raises(ModelError, match=r"1000 clean items .* are of one class"):
        checked_items("it", data, Split.COMBINER)
    with pytest.raises(ModelError, match="of one class"):
        checked(Named("perfect"), data)
