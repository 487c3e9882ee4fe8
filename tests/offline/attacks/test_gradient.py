"""What R+FGSM, L-BFGS, and C&W and DeepFool in L-infinity have of their own; their laws are in test_table.py."""

from __future__ import annotations

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.attacks.methods.cw_linf import CwLinf, cw_linf
from guard.offline.attacks.methods.deepfool import DeepFool, deepfool
from guard.offline.attacks.methods.lbfgs import lbfgs
from guard.offline.attacks.methods.rfgsm import Rfgsm, rfgsm
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import gap
from tests.offline.attacks.linear import linear, optimum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(x: torch.Tensor) -> torch.Tensor:
    """Answers of a model that nothing fools."""
    return x[:, :2] * 0 + torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_rfgsm_is_a_coin_and_then_fgsm_with_what_is_left(share):
    model, inputs, labels = linear(2)
    away = (model.module.weight[1 - labels] - model.module.weight[labels]).sign()
    moved = rfgsm(model, inputs, labels, budget=0.05, random_share=share, generator=seeded()) - inputs
    coin = (moved - 0.05 * (1 - share) * away) / (0.05 * share)
    torch.testing.assert_close(coin.abs(), torch.ones_like(coin), atol=1e-4, rtol=0)
    assert abs(coin.mean().item()) < 0.2
    assert not torch.equal(rfgsm(model, inputs, labels, budget=0.05, generator=seeded(1)) - inputs, moved)


def test_rfgsm_must_leave_something_for_the_gradient():
    with pytest.raises(ConfigError, match="less than 1"):
        Rfgsm(budget=0.1, random_share=1.0)


@pytest.mark.parametrize("attack", [lbfgs, cw_linf, deepfool])
def test_what_cannot_be_fooled_comes_back_as_it_was(attack):
    inputs = torch.rand(3, 5, generator=seeded())
    torch.testing.assert_close(attack(TorchModel(flat), inputs, torch.zeros(3).long(), steps=3), inputs)


@pytest.mark.parametrize(("attack", "norm"), [(lbfgs, "l2"), (cw_linf, "linf")])
def test_more_searches_never_enlarge_the_perturbation(attack, norm):
    model, inputs, labels = linear(4)
    few, many = (sizes(attack(model, inputs, labels, searches=n) - inputs, norm) for n in (2, 9))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-4).any()


def test_cw_linf_keeps_its_confidence_and_pays_for_it():
    model, inputs, labels = linear(4, scale=3.0)
    plain, sure = cw_linf(model, inputs, labels), cw_linf(model, inputs, labels, confidence=1.0)
    assert (gap(model(sure), labels) >= 1.0).all()
    assert (sizes(sure - inputs, "linf") > sizes(plain - inputs, "linf")).all()
    assert CwLinf(confidence=1.0).family == "high-confidence"
    assert CwLinf().family == "low-confidence"


def test_cw_linf_spends_no_more_than_it_says_and_lets_items_rest():
    model, inputs, labels = linear(4)
    rows = []
    cw_linf(TorchModel(lambda x: rows.append(len(x)) or model(x)), inputs, labels, steps=10, searches=6)
    assert len(rows) <= 60
    assert sum(rows) < 0.9 * 60 * len(inputs)


def test_cw_linf_finds_what_is_far_away():
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, "linf")
    attacked = cw_linf(model, inputs, labels, threshold=nearest.min().item() / 20)
    assert (gap(model(attacked), labels) > 0).all()
    assert (sizes(attacked - inputs, "linf") <= 1.1 * nearest).all()


def test_lbfgs_spends_no_more_than_it_says():
    model, inputs, labels = linear(4)
    rows = []
    lbfgs(TorchModel(lambda x: rows.append(len(x)) or model(x)), inputs, labels, steps=5, searches=4)
    assert sum(rows) <= 4 * 2 * 5 * len(inputs)


def test_deepfool_in_linf_moves_every_coordinate_alike():
    model, inputs, labels = linear(6)
    nearest, rival = optimum(model, inputs, labels, "linf")
    attacked = deepfool(model, inputs, labels, steps=1, norm="linf")
    torch.testing.assert_close(
        (attacked - inputs).abs(), (1.02 * nearest)[:, None].expand_as(inputs), rtol=1e-3, atol=1e-5
    )
    assert torch.equal(model(attacked).argmax(dim=1), rival)
    with pytest.raises(ConfigError, match="wanted one of linf, l2"):
        DeepFool(norm="l1")
