"""Feature maps smoothed between the layers, against the network written out, and where there are none."""

from __future__ import annotations

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.detectors.feature_denoising import FeatureDenoising
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.latent_filter import FilteredLogits
from tests.offline import tiny


@pytest.mark.parametrize(
    "need", [FilteredLogits(), FilteredLogits(MovingAverage(3), 1.0), FilteredLogits(Median(2), 0.2)]
)
def test_the_filter_stands_between_the_first_stage_and_the_rest(need: FilteredLogits) -> None:
    images, network = torch.from_numpy(tiny.data(30, seed=5)[0]), tiny.image_model()
    assert isinstance(network, torch.nn.Sequential)
    with torch.no_grad():
        maps = network[:3](images)  # convolution, normalisation, ReLU: the first stage; no other has neighbours
        mixed = (1 - need.share) * maps + need.share * need.filter(maps)
        found = Gather(tiny.image_classifier(), [need])(images)[need]
        torch.testing.assert_close(found, network[3:](mixed), rtol=1e-4, atol=1e-5)
        assert float((found - network(images)).abs().mean()) > 0.01


def test_a_model_without_feature_maps_is_not_asked() -> None:
    need = FilteredLogits()
    assert need.lacks(tiny.image_classifier()) is None
    assert need.lacks(tiny.series_classifier()) is None
    assert need.lacks(tiny.vector_classifier()) == "the model has no feature maps with neighbours to smooth"
    with pytest.raises(ConfigError, match="cannot be asked: the model has no feature maps"):
        Gather(tiny.vector_classifier(), [need])
    assert "vectors" not in FeatureDenoising.kinds


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"filter": "bits"}, "filter = 'bits'; wanted one of median, mean"),
        ({"share": 0.0}, "share = 0.0"),
        ({"filter": "mean", "window": 2}, "window = 2"),
    ],
)
def test_a_setting_without_a_meaning_is_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_detector("feature_denoising", ["a"], settings)
