"""What is feature visualisation's own; the laws of every attack are in test_table.py."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.feature_visualisation import (
    FeatureVisualisation,
    answer_of,
    blurred,
    easiest,
    grey,
    rolled,
    towards_class,
    visualise,
)
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import log_odds
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.1  # of the items, on whatever processor the network was trained: 0.15 on one, more on others
BUDGET = 0.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def learned() -> tuple[Tensor, int]:
    """The attacked items, and the class that they are to look like."""
    digits = trained()
    attack = FeatureVisualisation(budget=BUDGET, target=6)  # to 8, the easiest, noise alone takes many
    knowledge = attack.learn(digits.model, digits.seen[:200], digits.seen_labels[:200], seeded())
    attacked = Informed(attack, knowledge)(digits.model, digits.inputs, digits.labels, seeded())
    return attacked, int(knowledge["target"])


def test_beats_noise_of_its_size_on_held_out_items():
    digits = trained()
    attacked, _ = learned()
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN
    assert (sizes(attacked - digits.inputs, "linf") <= BUDGET + 1e-6).all()


def test_its_objective_rises_on_items_that_it_has_not_seen():
    digits = trained()
    attacked, target = learned()
    aims = torch.full_like(digits.labels, target)
    before, after = (log_odds(digits.model(points), aims, aims) for points in (digits.inputs, attacked))
    others = digits.labels != target
    assert (after > before)[others].float().mean() > 0.9


@pytest.mark.parametrize("data_free", [False, True])
@pytest.mark.parametrize("target", [3, 6])
def test_the_target_rises_more_than_under_noise(target, data_free):
    digits = trained()
    canvases = grey(digits.inputs, seeded()) if data_free else digits.seen[:200]
    found = visualise(towards_class(digits.model, target), canvases, budget=0.15, steps=60, generator=seeded())
    noise = 0.15 * torch.where(torch.rand(found.shape, generator=seeded(4)) < 0.5, -1.0, 1.0)
    aims = torch.full_like(digits.labels, target)
    led, blind = (
        log_odds(digits.model((digits.inputs + change).clamp(0, 1)), aims, aims).mean() for change in (found, noise)
    )
    assert led > blind + 1.0


@pytest.mark.parametrize("neuron", [0, 5])
@pytest.mark.parametrize("data_free", [False, True])
def test_a_neuron_answers_more_than_under_any_of_twenty_noises_on_items_that_it_has_not_seen(neuron, data_free):
    digits = trained()
    attack = FeatureVisualisation(budget=0.15, neuron=neuron, steps=60, data_free=data_free)
    knowledge = attack.learn(digits.model, digits.seen[:200], digits.seen_labels[:200], seeded())
    attacked = Informed(attack, knowledge)(digits.model, digits.inputs, digits.labels, seeded())
    draws = seeded(4)

    def mean(points: Tensor) -> float:
        with torch.no_grad():
            return float(answer_of(neuron, digits.model, points.clamp(0, 1), attack).mean())

    blind = [
        mean(digits.inputs + 0.15 * torch.where(torch.rand(digits.inputs.shape[1:], generator=draws) < 0.5, -1.0, 1.0))
        for _ in range(20)
    ]
    assert mean(attacked) > max(mean(digits.inputs), *blind)


def test_the_neuron_is_a_channels_mean_before_the_logits():
    weight = torch.randn(4, 3, 1, 1, generator=seeded())
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(100, 2))
    model[0].weight.data = weight
    images = torch.rand(2, 3, 5, 5, generator=seeded(1))
    wanted = torch.einsum("ichw,c->i", images, weight[2, :, 0, 0]) / 25
    torch.testing.assert_close(answer_of(2, TorchModel(model), images, None), wanted)
    with pytest.raises(ConfigError, match="has 4 neurons"):
        answer_of(4, TorchModel(model), images, None)
    with pytest.raises(ConfigError, match="this model has none"):
        answer_of(0, TorchModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 2))), images, None)


def test_blur_makes_it_smoother():
    digits = trained()
    climb, canvases = towards_class(digits.model, 3), digits.seen[:100]
    rough, smooth = (
        visualise(climb, canvases, budget=0.15, steps=30, generator=seeded(), blur=blur) for blur in (0.01, 1.0)
    )
    assert smooth.diff(dim=-1).abs().mean() < 0.9 * rough.diff(dim=-1).abs().mean()


def test_parts():
    image = torch.rand(2, 3, 5, 5, generator=seeded())
    assert torch.equal(rolled(rolled(image, [1, -2]), [-1, 2]), image)
    torch.testing.assert_close(blurred(image, 0.0), image)
    torch.testing.assert_close(blurred(torch.ones_like(image), 0.7), torch.ones_like(image))
    vectors = torch.rand(2, 5)
    assert torch.equal(rolled(blurred(vectors, 0.5), [1, 1]), vectors)


def test_the_easiest_class_is_the_one_that_a_larger_weight_reaches():
    weight = torch.zeros(3, 6)
    weight[2] = torch.tensor([9.0, -9.0] * 3)

    def model(x: Tensor) -> Tensor:
        return x @ weight.T + torch.tensor([1.0, 0.0, 0.0])

    canvases = 0.5 + 0.05 * torch.randn(40, 6, generator=seeded())
    assert easiest(TorchModel(model), canvases, budget=0.1, generator=seeded()) == 2
    assert easiest(TorchModel(lambda x: model(x)[:, [0, 2, 1]]), canvases, budget=0.1, generator=seeded()) == 1


def test_it_learns_first_and_says_so():
    attack, digits = FeatureVisualisation(budget=0.1), trained()
    assert learns(attack)
    with pytest.raises(ValueError, match="has not learned yet"):
        attack(digits.model, digits.inputs, digits.labels, seeded())


def test_what_cannot_be_built_says_why():
    with pytest.raises(ConfigError, match="wanted a class number"):
        FeatureVisualisation(budget=0.1, target=1.5)
    with pytest.raises(ConfigError, match="wanted a neuron number"):
        FeatureVisualisation(budget=0.1, neuron=-1)
    with pytest.raises(ConfigError, match="both given"):
        FeatureVisualisation(budget=0.1, neuron=1, target=2)
    with pytest.raises(ConfigError, match="share of at most 1"):
        FeatureVisualisation(budget=0.1, blur=2.0)
