"""Cache of evidence by need and by an item's content, so that each is gathered once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.offline.evidence.batches import gather_all
from guard.offline.evidence.gather import Gather, distinct
from guard.offline.evidence.kinds.plain import Image, Logits
from guard.offline.evidence.needs import Evidence, Need
from guard.offline.model.classifier import Classifier

# (needs, unit-space images [item, ...], possibly none) -> their evidence.
Gathered = Callable[[Sequence[Need], NDArray[np.float32]], Evidence]


class EvidenceCache:
    """Evidence by need and by an item's content: gathered once, however often it is asked for."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.places: dict[Need, dict[bytes, int]] = {}
        self.values: dict[Need, Tensor] = {}

    def __call__(self, needs: Sequence[Need], images: NDArray[np.float32]) -> Evidence:
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        wanted = distinct([Image(), Logits(), *needs])
        fresh = [need for need in wanted if any(key not in self.places.get(need, {}) for key in keys)]
        if fresh:
            missing = {key: i for i, key in enumerate(keys) if any(key not in self.places.get(n, {}) for n in fresh)}
            self.add(fresh, list(missing), images[list(missing.values())])
        if not len(images):
            return self.nothing(wanted, images)
        held = [need for need in wanted if need != Image()]
        found = {need: self.values[need][[self.places[need][key] for key in keys]] for need in held}
        return {Image(): torch.from_numpy(images), **found}

    def add(self, needs: Sequence[Need], keys: Sequence[bytes], images: NDArray[np.float32]) -> None:
        found = gather_all(Gather(self.classifier, needs), images)
        for need in needs:
            places = self.places.setdefault(need, {})
            if need == Image():
                places |= dict.fromkeys(keys, 0)
                continue
            held = self.values.get(need, found[need][:0])
            places |= {key: len(held) + i for i, key in enumerate(keys)}  # a key held already takes its new place
            self.values[need] = torch.cat([held, found[need]])

    def nothing(self, needs: Sequence[Need], images: NDArray[np.float32]) -> Evidence:
        """Return the evidence of no items: tensors of the right shapes, with zero rows."""
        one = np.zeros((1, *images.shape[1:]), dtype=np.float32)
        with torch.no_grad():
            return {need: value[:0] for need, value in Gather(self.classifier, needs)(torch.from_numpy(one)).items()}
