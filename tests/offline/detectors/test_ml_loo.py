"""ML-LOO's ranges against scipy, and what it looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import iqr
from torch.nn.functional import one_hot

from guard.offline.detectors.ml_loo import MlLoo, interquartile_range, ranges
from guard.offline.evidence.kinds.left_out import Patches, PatchLatent, PatchLogits
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence


def test_the_range_between_quartiles_is_scipys() -> None:
    values = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(0))
    for parts in (16, 9, 4):
        expected = iqr(values[:, :parts].numpy(), axis=1)
        np.testing.assert_allclose(interquartile_range(values[:, :parts]).numpy(), expected, rtol=1e-5)


def test_ml_loo_looks_at_the_named_class_and_at_every_neuron() -> None:
    detector = MlLoo(("tap",), Patches(4))
    answers = torch.zeros(1, 4, 3)
    answers[0, 2, 1] = 9.0
    layer = torch.tensor([[[1.0, 0.0], [1.0, 4.0], [1.0, 0.0], [1.0, 4.0]]])
    found = {}
    for named in (0, 1):
        evidence: Evidence = {
            Logits(): 5.0 * one_hot(torch.tensor([named]), 3).float(),
            PatchLogits(Patches(4)): answers,
            PatchLatent("tap", Patches(4)): layer,
        }
        found[named] = ranges(detector, evidence)[0]
    believed = answers[0].softmax(dim=1)
    for named, numbers in found.items():
        assert float(numbers[0]) == pytest.approx(iqr(believed[:, named].numpy()), abs=1e-6)
        assert numbers[1:].tolist() == [0.0, 4.0]
