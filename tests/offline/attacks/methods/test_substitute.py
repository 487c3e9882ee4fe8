"""What is the substitute's own; the laws of every attack are in test_table.py."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import Tensor

from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.substitute import Substitute, augmented, distil
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.objective import log_odds
from guard.offline.networks.architectures import small_classifier
from guard.offline.networks.weights import recalled
from tests.offline.attacks.trained import fooled, fooled_by_noise, trained

MARGIN = 0.1  # of the items, on whatever processor the network was trained: 0.23 on one, more on others
ITEMS, ROUNDS = 200, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Answering:
    """Answers alone, and counts them."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.rows += len(images)
        return trained().model(images)


@cache
def learned() -> tuple[Attack, int, Tensor]:
    """The attack, how many answers it cost, and the substitute's logits of the held-out items."""
    digits, model = trained(), Answering()
    attack = Substitute(budget=0.2, rounds=ROUNDS, learning_items=ITEMS)
    knowledge = attack.learn(TorchModel(model), digits.seen[:ITEMS], digits.seen_labels[:ITEMS], seeded())
    student = recalled(partial(small_classifier, (1, 8, 8), 10), knowledge, digits.inputs)
    return Informed(attack, knowledge), model.rows, student(digits.inputs)


def test_beats_noise_of_its_size_on_held_out_items():
    digits = trained()
    attacked = learned()[0](digits.model, digits.inputs, digits.labels, seeded())
    by_noise = fooled_by_noise(digits.model, digits.inputs, attacked, digits.labels)
    assert fooled(digits.model, attacked, digits.labels) >= by_noise + MARGIN
    assert (sizes(attacked - digits.inputs, "linf") <= 0.2 + 1e-6).all()


def test_the_model_is_asked_while_learning_alone_and_so_often():
    digits = trained()
    attack, asked, _ = learned()
    assert asked == ITEMS * 2**ROUNDS
    model = Answering()
    attack(TorchModel(model), digits.inputs, digits.labels, seeded())
    assert model.rows == 0


def test_the_substitute_answers_as_the_model_does():
    assert (learned()[2].argmax(dim=1) == trained().labels).float().mean() > 0.9


def test_the_models_own_objective_rises_though_it_is_not_climbed():
    digits = trained()
    attacked = learned()[0](digits.model, digits.inputs, digits.labels, seeded())
    before, after = (log_odds(digits.model(points), digits.labels) for points in (digits.inputs, attacked))
    assert (after > before).float().mean() > 0.9


def test_new_items_are_moved_up_the_class_that_the_model_named():
    digits = trained()
    named = digits.labels
    moved = augmented(digits.model.module, digits.inputs, named, 0.02)
    rise = digits.model(moved).gather(1, named[:, None]) - digits.model(digits.inputs).gather(1, named[:, None])
    assert (rise > 0).float().mean() > 0.95
    assert (moved - digits.inputs).abs().max() <= 0.02 + 1e-6


def test_the_generator_decides():
    digits = trained()
    weights = [
        distil(digits.model, digits.seen[:40], generator=seeded(seed), rounds=1, epochs=1).head.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_learns_first_and_says_so():
    attack, digits = Substitute(budget=0.1), trained()
    assert learns(attack)
    with pytest.raises(ValueError, match="has not learned yet"):
        attack(digits.model, digits.inputs, digits.labels, seeded())
