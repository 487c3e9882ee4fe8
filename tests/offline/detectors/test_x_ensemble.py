"""The forest of an ensemble sees every network's answer."""

from __future__ import annotations

import torch

from guard.offline.detectors.x_ensemble import XEnsembleHead
from tests.offline.detectors.fitting import fitted


def test_the_forest_of_an_ensemble_is_over_four_networks() -> None:
    have = fitted("images")
    head = have.heads["x_ensemble"]
    assert isinstance(head, XEnsembleHead)
    kinds = 1 + len(set(have.examples.attacked.by))
    with torch.no_grad():
        answers, shares = head.answers(have.clean), head(have.clean)
    assert answers.shape == (len(have.inputs), 4 + 4 * kinds)
    torch.testing.assert_close(answers[:, 4:].exp().unflatten(1, (4, kinds)).sum(dim=2), torch.ones(len(answers), 4))
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
