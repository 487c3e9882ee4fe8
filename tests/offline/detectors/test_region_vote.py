"""The region's vote, and how its radius is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.offline.data.attacked import Attacked
from guard.offline.detectors.detector import Examples
from guard.offline.detectors.region_vote import RegionVote, voted
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.variants import NoisyLogits
from tests.offline.detectors.test_values import CLASSES, sure_of


def test_a_vote_is_the_mean_of_probabilities_and_its_radius_the_largest_that_loses_nothing() -> None:
    answers = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(voted(answers).softmax(dim=1), answers.softmax(dim=2).mean(dim=1))
    logits = sure_of(torch.arange(100) % CLASSES)
    wrong = {0.3: 30, 0.2: 2, 0.1: 1, 0.05: 1, 0.02: 0, 0.01: 0}

    def ask(needs: object, *, most: int | None = None, clean_only: bool = False) -> Examples:
        assert clean_only
        assert most == 300
        clean: dict[object, Tensor] = {Logits(): logits}
        for radius, lost in wrong.items():
            moved = torch.cat([logits[:lost].roll(1, dims=1), logits[lost:]])
            clean[NoisyLogits(radius)] = moved[:, None].expand(-1, 16, -1)
        return Examples(clean, torch.arange(100) % CLASSES, {}, Attacked({}, ()), seed=0)  # type: ignore[arg-type]

    assert RegionVote().learn(ask).around.radius == 0.1
    given = build_detector("region_vote", ["a"], {"radius": 0.04})
    assert isinstance(given, RegionVote)
    assert given.learn(ask).around.radius == 0.04
