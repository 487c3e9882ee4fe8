"""MagNet's divergence against scipy, and its autoencoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from guard.errors import DataError
from guard.offline.detectors.magnet import Magnet, MagnetHead, divergence
from tests.offline.detectors.fitting import fitted


def test_a_divergence_is_scipys() -> None:
    one, other = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    expected = jensenshannon(one.softmax(1).numpy(), other.softmax(1).numpy(), axis=1) ** 2
    np.testing.assert_allclose(divergence(one, other).numpy(), expected, rtol=1e-3, atol=1e-6)
    assert float(divergence(one, one).max()) < 1e-6


def test_magnet_rebuilds_clean_items_better_than_attacked_ones_and_states_its_cost() -> None:
    have = fitted("images")
    detector = have.detectors["magnet"]
    assert isinstance(detector, Magnet)
    assert detector.network is not None
    rebuilt = detector.network.network(have.inputs).clamp(0, 1)
    plain = have.inputs - have.inputs.mean(dim=0)
    assert float((rebuilt - have.inputs).square().mean()) < 0.75 * float(plain.square().mean())
    other = float((rebuilt.roll(1, dims=0) - have.inputs).square().mean())
    assert other > 1.2 * float((rebuilt - have.inputs).square().mean())
    assert detector.network.forwards > 0
    assert sum(need.forwards + need.rows_per_item for need in detector.needs) == 1 + detector.network.forwards
    with pytest.raises(DataError, match="learn"):
        MagnetHead(replace(detector, network=None), torch.zeros(3, 2), (1, 8, 8))
