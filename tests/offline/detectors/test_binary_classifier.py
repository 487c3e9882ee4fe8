"""The binary classifier looks at the item alone."""

from __future__ import annotations

from guard.offline.detectors.binary_classifier import BinaryClassifier
from guard.offline.evidence.kinds.plain import Image


def test_a_binary_classifier_never_asks_the_model() -> None:
    assert BinaryClassifier().needs == (Image(),)
