"""What is the on-manifold attack's own; the laws of every attack are in test_table.py."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import learns
from guard.offline.attacks.methods.cw import cw
from guard.offline.attacks.methods.on_manifold import OnManifold, off_manifold, on_manifold, taught
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import gap
from tests.offline.attacks.linear import linear, optimum
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.8  # of all items: by how much it beats random perturbations of the same size
WEIGHT = 2.0
FEW = 20


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def encoder() -> nn.Module:
    return taught(trained().seen[:300], epochs=15, generator=seeded())


@cache
def attacked(weight: float = WEIGHT) -> Tensor:
    digits = trained()
    return on_manifold(digits.model, encoder(), digits.inputs[:FEW], digits.labels[:FEW], weight=weight)


def missed(points: Tensor) -> Tensor:
    """What the autoencoder does not reconstruct, [item]."""
    return sizes(points - encoder()(points), "l2").square()


def test_beats_noise_of_its_size_on_held_out_items():
    digits = trained()
    inputs, labels = digits.inputs[:FEW], digits.labels[:FEW]
    by_noise = fooled_by_noise(digits.model, inputs, attacked(), labels)
    assert fooled(digits.model, attacked(), labels) >= by_noise + MARGIN
    assert attacked().min() >= 0
    assert attacked().max() <= 1


def test_lies_nearer_to_the_data_than_what_is_smallest_alone():
    """Its objective, distance and reconstruction error together, is lower than that of Carlini and Wagner's points."""
    digits = trained()
    inputs, labels = digits.inputs[:FEW], digits.labels[:FEW]
    plain = cw(digits.model, inputs, labels)
    cost, plain_cost = (off_manifold(encoder(), points, inputs, WEIGHT)[0] for points in (attacked(), plain))
    assert (cost < plain_cost).float().mean() > 0.9
    assert missed(attacked()).mean() < 0.9 * missed(plain).mean()
    assert sizes(attacked() - inputs, "l2").mean() > sizes(plain - inputs, "l2").mean()


def test_the_weight_buys_reconstruction_with_distance():
    inputs = trained().inputs[:FEW]
    assert missed(attacked(10.0)).mean() < missed(attacked()).mean()
    assert sizes(attacked(10.0) - inputs, "l2").mean() > sizes(attacked() - inputs, "l2").mean()


def test_with_an_encoder_that_misses_nothing_it_is_close_to_the_optimum():
    model, inputs, labels = linear(2)
    nearest, _ = optimum(model, inputs, labels, "l2")
    points = on_manifold(model, lambda x: x, inputs, labels, searches=6)
    assert fooled(model, points, labels) == 1.0
    ratio = sizes(points - inputs, "l2") / nearest
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.15


def test_confidence_is_kept():
    model, inputs, labels = linear(4, scale=3.0)
    points = on_manifold(model, lambda x: x, inputs, labels, confidence=1.0)
    assert (gap(model(points), labels) >= 1.0).all()
    assert OnManifold(confidence=1.0).family == "high-confidence"


def test_targets_are_reached():
    digits = trained()
    labels = digits.labels[:8]
    points = on_manifold(digits.model, encoder(), digits.inputs[:8], labels, targets=(labels + 1) % 10)
    assert (digits.model(points).argmax(dim=1) == (labels + 1) % 10).float().mean() > 0.8


def test_what_cannot_be_fooled_comes_back_as_it_was():
    inputs = torch.rand(3, 5, generator=seeded())
    points = on_manifold(
        TorchModel(lambda x: x.sum(dim=1, keepdim=True) * 0 + torch.tensor([1.0, 0.0])),
        lambda x: 0 * x,
        inputs,
        torch.zeros(3).long(),
        steps=5,
    )
    assert torch.equal(points, inputs)


def test_the_autoencoder_tells_data_from_noise():
    digits = trained()
    noise = torch.rand(digits.inputs.shape, generator=seeded(1))
    assert missed(digits.inputs).mean() < missed(noise).mean() / 4


def test_it_learns_first_and_says_so():
    attack, digits = OnManifold(), trained()
    assert learns(attack)
    with pytest.raises(ValueError, match="has not learned yet"):
        attack(digits.model, digits.inputs, digits.labels, seeded())
