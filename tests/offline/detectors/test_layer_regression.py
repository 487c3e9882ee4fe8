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


def test_a_channel_that_hardly_fires_does_not_decide() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 32, generator=generator)
    early, late = Latent("early"), Latent("late")

    def evidence(items: int, shift: float = 0.0, fires: float = 0.0) -> Evidence:
        """Return 32 channels that follow from the last layer, but the first, which is dead or fires now and then."""
        named = mixing[torch.randint(0, 10, (items,), generator=generator)]
        last = torch.relu(2 * named + 0.5 * torch.randn(items, 32, generator=generator) + shift)
        first = torch.relu(last + 0.1 * torch.randn(items, 32, generator=generator))
        first[:, 0] = torch.where(torch.rand(items, generator=generator) < fires, 0.3, 0.0)
        return {early: first, late: last}

    clean = evidence(800)
    nothing: Evidence = {need: value[:0] for need, value in clean.items()}
    labels = torch.zeros(800, dtype=torch.int64)
    head = LayerRegression(late, (early,), Learning(128, 20)).fit(
        Examples(clean, labels, nothing, Attacked(nothing, ()), seed=0)
    )

    def caught(fires: float) -> float:
        limit = head(evidence(2000, fires=fires)).quantile(0.95)
        return float((head(evidence(2000, shift=0.6, fires=fires)) > limit).float().mean())

    assert abs(caught(0.06) - caught(0.0)) < 0.1


def test_layers_of_constants_alone_are_read_all_the_same() -> None:
    early, late = Latent("early"), Latent("late")
    clean: Evidence = {early: torch.full((50, 4), 2.0), late: torch.rand(50, 3)}
    nothing: Evidence = {need: value[:0] for need, value in clean.items()}
    examples = Examples(clean, torch.zeros(50, dtype=torch.int64), nothing, Attacked(nothing, ()), seed=0)
    head = LayerRegression(late, (early,), Learning(8, 1)).fit(examples)
    assert bool(head(clean).isfinite().all())
