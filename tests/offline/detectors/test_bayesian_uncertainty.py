"""Bayesian uncertainty against numpy's variance."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.detectors.bayesian_uncertainty import BayesianUncertainty
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.dropout import DropoutLogits
from guard.offline.model.open_model import Source, open_model
from tests.offline.detectors.test_values import examples, latents


def test_bayesian_uncertainty_is_the_mean_variance_of_the_probabilities() -> None:
    detector = BayesianUncertainty(DropoutLogits(5))
    answers = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    head = detector.fit(examples(*latents(9)))
    expected = np.log(answers.softmax(2).numpy().var(axis=1).mean(axis=1) + 1e-8)
    np.testing.assert_allclose(head({detector.dropped: answers}).numpy(), expected, rtol=1e-4)


class TimeInFront(nn.Module):
    """A network of series that drops values while they are [time, item, feature], and, if asked, others behind."""

    def __init__(self, *, later: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropped, self.last = nn.Linear(2, 16), nn.Dropout(0.3), nn.Linear(16, 3)
        self.later = nn.Dropout(0.3) if later else nn.Identity()

    def forward(self, series: Tensor) -> Tensor:
        steps = self.dropped(torch.relu(self.first(series.permute(2, 0, 1))))
        return cast(Tensor, self.last(self.later(torch.relu(steps.mean(dim=0)))))


def only_in_front() -> nn.Module:
    return TimeInFront(later=False).eval()


def also_behind() -> nn.Module:
    return TimeInFront(later=True).eval()


def test_dropout_with_time_in_front_is_a_stated_skip() -> None:
    classifier, need = open_model(Source(f"{__name__}:only_in_front", (2, 20))), DropoutLogits(rows=3)
    assert "time lies in front" in (need.lacks(classifier) or "")
    with pytest.raises(ConfigError, match="time lies in front"):
        need.own_pass(classifier)


def test_dropout_behind_values_with_time_in_front_is_asked() -> None:
    classifier, need = open_model(Source(f"{__name__}:also_behind", (2, 20))), DropoutLogits(rows=3)
    assert need.lacks(classifier) is None
    series = torch.rand(5, 2, 20, generator=torch.Generator().manual_seed(1))
    gather = Gather(classifier, [need])
    together = gather(series)[need]
    assert together.shape == (5, 3, 3)
    assert float(together.std(dim=1).max()) > 0
    alone = torch.cat([gather(item[None])[need] for item in series])
    torch.testing.assert_close(alone, together)
