"""Deep k-nearest neighbours against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from guard.errors import DataError
from guard.offline.detectors.deep_knn import DeepKnn
from guard.offline.evidence.kinds.plain import Logits
from tests.offline.detectors.test_values import CLASSES, TAP, examples, latents, sure_of


def test_deep_knn_looks_at_the_neighbours_that_scikit_learn_finds() -> None:
    z, labels = latents(90)
    head = DeepKnn((TAP,), neighbours=7, references=10_000).fit(examples(z, labels))
    probes = z[:30] + 0.3
    found = NearestNeighbors(n_neighbors=8, metric="cosine").fit((z - z.mean(dim=0)).numpy())
    distances, index = found.kneighbors((probes - z.mean(dim=0)).numpy())
    weights = distances[:, -1:] - distances[:, :-1] + 1e-6
    for named in range(CLASSES):
        other = labels.numpy()[index[:, :-1]] != named
        expected = (other * weights).sum(axis=1) / weights.sum(axis=1)
        mine = head({TAP: probes, Logits(): sure_of(torch.full((30,), named))})
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="looks at 16 neighbours, and got 6"):
        DeepKnn((TAP,)).fit(examples(z[:6], torch.arange(6) % CLASSES))
