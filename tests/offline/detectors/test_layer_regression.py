"""Layer regression on layers that follow from each other, and on layers that do not."""

from __future__ import annotations

import torch

from guard.offline.data.attacked import Attacked
from guard.offline.detectors.detector import Examples
from guard.offline.detectors.layer_regression import LayerRegression
from guard.offline.detectors.parts.kind_network import Learning
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence


def test_layer_regression_expects_what_the_last_layer_tells() -> None:
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(400, 3, generator=generator)
    early = torch.cat([last @ torch.randn(3, 4, generator=generator), last.square()], dim=1)
    first, end = Latent("first"), Latent("end")
    clean: Evidence = {first: early, end: last}
    nothing: Evidence = {need: value[:0] for need, value in clean.items()}
    labels = torch.zeros(400, dtype=torch.int64)
    detector = LayerRegression(end, (first,), Learning(64, 60))
    head = detector.fit(Examples(clean, labels, nothing, Attacked(nothing, ()), seed=0))
    fits, apart = head(clean), head({first: early.roll(1, dims=0), end: last})
    assert float(fits.exp().mean()) < 0.1, "of a variance of 1"
    assert float((apart > fits.max()).float().mean()) > 0.8
    only = build_detector("layer_regression", ["only"], {})
    assert only.needs == (Logits(), Latent("only")), "one tap is predicted from the logits"
