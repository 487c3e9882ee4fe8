"""Detectors of a model half of whose channels are pruned: constant but for rounding, which no score may rest on."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from guard.offline.data.attacked import Attacked
from guard.offline.detectors.detector import Detector, Examples
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence
from guard.offline.evidence.onnx_gather import CompiledGather
from guard.offline.model.open_model import Source, open_model

CONSTANTS = torch.tensor([0.7312, 37.3, 1.9, 0.1, 5.77, 3.31, 11.1, 0.033])
NAMES = ("mahalanobis", "safetynet", "outlier_class", "layer_regression")
MAX_DEVIATIONS = 0.02  # of a clean score, by which torch and ONNX Runtime may differ: 0.9 and more before


def pruned() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(1, 16, 3, stride=2, padding=1)
    with torch.no_grad():
        first.weight[:8] = 0
        first.bias[:8] = CONSTANTS  # type: ignore[index]  # it has a bias
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def images(items: int, seed: int) -> Tensor:
    return torch.rand((items, 1, 14, 14), generator=torch.Generator().manual_seed(seed))


@cache
def prepared() -> tuple[dict[str, Detector], Examples, Evidence, Evidence]:
    """The detectors, what they are fitted on, and evidence of other items by torch and by ONNX Runtime."""
    classifier = open_model(Source(f"{__name__}:pruned", (1, 14, 14)))
    taps = [tap.name for tap in classifier.taps]
    detectors = {name: build_detector(name, taps, {}) for name in NAMES}
    gather = Gather(classifier, [need for detector in detectors.values() for need in detector.needs])
    clean, moved = images(200, 0), images(100, 0) + 0.1 * (images(100, 1) - 0.3).sign()
    with torch.no_grad():
        evidence, noisy = gather(clean), gather((clean + 0.05 * images(200, 2)).clamp(0, 1))
        attacked, here = gather(moved.clamp(0, 1)), gather(images(60, 3))
    labels = evidence[Logits()].argmax(dim=1)
    examples = Examples(evidence, labels, noisy, Attacked(attacked, ("fgsm",) * 100), 0)
    there = CompiledGather(gather, images(4, 3).numpy())(images(60, 3).numpy())
    return detectors, examples, here, there


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_rest_on_the_rounding_of_a_pruned_channel(name: str) -> None:
    detectors, examples, here, there = prepared()
    head = detectors[name].fit(examples)
    with torch.no_grad():
        own, other = head(here), head(there)
    assert float((own - other).abs().max() / own.std()) < MAX_DEVIATIONS
