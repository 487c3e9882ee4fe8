"""The subnetwork's adversary, and the layer that it reads."""

from __future__ import annotations

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.detectors.detector_subnetwork import hidden
from guard.offline.detectors.parts.kind_network import KindNetwork
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.kinds.plain import FeatureMap


def test_the_adversary_of_a_subnetwork_moves_attacked_maps_alone_and_lowers_their_odds() -> None:
    network = KindNetwork((3, 4, 4), 4, 3)
    network.spread.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1))
    maps = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    attacked = torch.arange(40) >= 20
    moved = hidden(network, maps, attacked, 0.05)
    assert torch.equal(moved[:20], maps[:20])
    away = (moved - maps).abs().amax(dim=(0, 2, 3))
    assert bool((away <= 0.05 * network.spread.flatten() + 1e-6).all())
    assert bool((away > 0).all())
    with torch.no_grad():
        assert float(network.odds(moved[20:]).sum()) < float(network.odds(maps[20:]).sum())
    assert torch.equal(hidden(network, maps, attacked, 0.0), maps)


def test_a_subnetwork_reads_the_middle_layer_unless_another_is_named() -> None:
    assert build_detector("detector_subnetwork", ["a", "b", "c"], {}).needs == (FeatureMap("b"),)
    assert build_detector("detector_subnetwork", ["a", "b"], {"tap": "b"}).needs == (FeatureMap("b"),)
    with pytest.raises(ConfigError, match="tap = 'z'; the model has no such layer, but a, b"):
        build_detector("detector_subnetwork", ["a", "b"], {"tap": "z"})
