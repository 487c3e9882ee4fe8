"""Bayesian uncertainty against numpy's variance."""

from __future__ import annotations

import numpy as np
import torch

from guard.offline.detectors.bayesian_uncertainty import BayesianUncertainty
from guard.offline.evidence.kinds.dropout import DropoutLogits
from tests.offline.detectors.test_values import examples, latents


def test_bayesian_uncertainty_is_the_mean_variance_of_the_probabilities() -> None:
    detector = BayesianUncertainty(DropoutLogits(5))
    answers = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    head = detector.fit(examples(*latents(9)))
    expected = np.log(answers.softmax(2).numpy().var(axis=1).mean(axis=1) + 1e-8)
    np.testing.assert_allclose(head({detector.dropped: answers}).numpy(), expected, rtol=1e-4)
