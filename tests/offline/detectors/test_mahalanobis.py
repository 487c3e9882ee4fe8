"""Mahalanobis distance weighs its taps by what attacks do to them."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.calibration import auroc
from guard.offline.data.attacked import Attacked
from guard.offline.detectors.detector import Examples
from guard.offline.detectors.mahalanobis import Mahalanobis
from guard.offline.evidence.kinds.plain import Image, Latent, Logits
from guard.offline.evidence.needs import Evidence

MOVED, OTHER = Latent("moved"), Latent("other")
CLASSES = 3


def test_the_tap_that_attacks_move_counts_most() -> None:
    detector = Mahalanobis((MOVED, OTHER))
    fitted = detector.fit(examples(attacked=items(300, seed=2, far=2.0)))
    deaf = detector.fit(examples(attacked=items(0, seed=2)))
    clean, attacked = items(300, seed=3), items(300, seed=4, far=2.0)
    found, mean = (auroc(head(clean).double().numpy(), head(attacked).double().numpy()) for head in (fitted, deaf))
    assert found > mean + 0.05
    assert fitted.weighing.slopes[0] > 3 * fitted.weighing.slopes[1].abs()


def test_without_attacks_the_score_is_the_mean_logarithm() -> None:
    head = Mahalanobis((MOVED, OTHER)).fit(examples(attacked=items(0, seed=2)))
    some = items(20, seed=5)
    torch.testing.assert_close(head(some), head.distances(some).mean(dim=1))


def items(count: int, seed: int, far: float = 0.0) -> Evidence:
    """Return evidence of items that belong to the first class, with one tap `far` spreads off in every feature."""
    draw = torch.Generator().manual_seed(seed)
    here: dict[Latent | Logits | Image, Tensor] = {
        MOVED: torch.randn(count, 4, generator=draw) + far * torch.randn(count, 4, generator=draw).sign() / 2,
        OTHER: torch.randn(count, 2, generator=draw),
        Logits(): torch.tensor([[5.0] + [0.0] * (CLASSES - 1)]).repeat(count, 1),
        Image(): torch.zeros(count, 1),
    }
    return dict(here)


def examples(attacked: Evidence) -> Examples:
    count = len(attacked[MOVED])
    clean = items(300, seed=0)
    labels = torch.zeros(300, dtype=torch.long)
    return Examples(clean, labels, items(100, seed=1), Attacked(attacked, ("far",) * count), seed=0)
