"""Limits of a model's whole numbers: beyond which it fails, as one that looks up the row of an embedding does.

How it works. The model is asked about an item of the data with one number moved far away. Where it fails, the last
number that it takes is searched for by halving the way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from guard.errors import ModelError
from guard.features import INTEGER, Feature
from guard.items_on_disk import Items
from guard.offline.model.asking import asked
from guard.offline.model.classifier import Classifier

FAR_STEPS = 2**20  # beyond the data's own values: a model that takes this takes what lies between


def with_limits(classifier: Classifier, images: Items) -> tuple[Feature, ...]:
    """Return a classifier's features with the limits of its whole numbers, found on the first of unit-space images."""
    features = classifier.spec.input.features
    if classifier.answering is not None:  # its student takes all values
        return features
    return tuple(
        limited(classifier, images[:1], place, feature) if feature.kind == INTEGER else feature
        for place, feature in enumerate(features)
    )


def limited(classifier: Classifier, item: Items, place: int, feature: Feature) -> Feature:
    """Return a feature with the limits between which the model takes it in the place of an item's value."""
    given = torch.from_numpy(np.asarray(item[:], dtype=np.float32))

    def takes(value: float) -> bool:
        moved = given.clone()
        moved[:, place] = (value - feature.low) / (feature.unit_high - feature.low)
        try:
            asked(classifier, moved)
        except ModelError:
            return False
        return True

    def last(inner: float, way: int) -> float | None:
        taken, failing = 0, FAR_STEPS
        if takes(inner + way * FAR_STEPS) or not takes(inner):
            return None
        while failing - taken > 1:
            middle = (taken + failing) // 2
            taken, failing = (middle, failing) if takes(inner + way * middle) else (taken, middle)
        return inner + way * taken

    return replace(feature, least=last(feature.low, -1), most=last(feature.high, 1))
