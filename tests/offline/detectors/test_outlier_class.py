"""The outlier class beside the model's own."""

from __future__ import annotations

from guard.offline.detectors.outlier_class import OutlierClassHead
from guard.offline.evidence.kinds.plain import Logits
from tests.offline.detectors.fitting import fitted


def test_the_outlier_class_is_one_more_than_the_models() -> None:
    head = fitted("images").heads["outlier_class"]
    assert isinstance(head, OutlierClassHead)
    assert head.network.last.out_features == fitted("images").clean[Logits()].shape[1] + 1
