"""What learns from attacks refuses too few of them."""

from __future__ import annotations

import pytest

from guard.errors import DataError
from guard.offline.detectors.table import build_detector
from tests.offline.detectors.test_values import examples, latents


@pytest.mark.parametrize(
    "name",
    ["binary_classifier", "outlier_class", "safetynet", "shap_signature", "x_ensemble", "detector_subnetwork"],
)
def test_what_learns_from_attacks_refuses_too_few(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} learns from attacked items; got 0, wanted at least 20"):
        build_detector(name, ["tap"], {}).fit(examples(*latents(30)))
