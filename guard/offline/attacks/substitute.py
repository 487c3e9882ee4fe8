"""A substitute distilled from the model's answers, and the transfer of what fools it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Attack, Family, Knowledge, Model, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.informed import Informed, untaught
from guard.offline.attacks.objective import chosen, value_and_gradient
from guard.offline.attacks.pgd import pgd
from guard.offline.attacks.student import drawn, knowledge_of, recalled, train
from guard.offline.data.norms import Norm

ROWS = 64  # asked at once
HEAD = "head.bias"  # whose length is the number of classes


def network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three convolutions for images, two layers for vectors."""
    body: nn.Module
    if len(shape) == 3:
        body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        width = 256
    else:
        features = int(torch.Size(shape).numel())
        body = nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        width = 64
    found = nn.Sequential()
    found.add_module("body", body)
    found.add_module("head", nn.Linear(width, classes))
    return found


def distil(
    model: Model,
    inputs: Tensor,
    *,
    generator: torch.Generator,
    rounds: int = 3,
    epochs: int = 10,
    stride: float = 0.1,
) -> nn.Module:
    """A small network that answers as `model` does, trained on its answers alone: inputs * 2^rounds of them.

    Each round doubles the items: every one is moved by `stride` along the sign of the substitute's own gradient for the
    class that the model named, to where the two are likely to differ, and the model is asked again.

    Source: Papernot et al. 2017, arXiv:1602.02697, section 4. They read labels; ours reads the logits' softmax.
    """
    answers = ask(model, inputs)
    student = drawn(partial(network, tuple(inputs.shape[1:]), answers.shape[1]), generator, inputs)
    train(student, inputs, partial(apart, answers), epochs=epochs, generator=generator)
    for _ in range(rounds):
        further = augmented(student, inputs, answers.argmax(dim=1), stride)
        inputs, answers = torch.cat([inputs, further]), torch.cat([answers, ask(model, further)])
        train(student, inputs, partial(apart, answers), epochs=epochs, generator=generator)
    return student.requires_grad_(False)


def ask(model: Model, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(ROWS)])


def apart(answers: Tensor, outputs: Tensor, index: Tensor) -> Tensor:
    """Mean cross-entropy of the substitute's outputs with what the model answered."""
    return nn.functional.cross_entropy(outputs, answers[index].softmax(dim=1))


def augmented(student: nn.Module, inputs: Tensor, named: Tensor, stride: float) -> Tensor:
    parts = zip(inputs.split(ROWS), named.split(ROWS), strict=True)
    rises = [value_and_gradient(student, part, partial(chosen, classes=own))[2] for part, own in parts]
    return (inputs + stride * torch.cat(rises).sign()).clamp(0, 1)


@dataclass(frozen=True, repr=False)
class Substitute:
    """PGD on the substitute as a value: the model itself is asked nothing more once the substitute has learned."""

    budget: float
    norm: Norm = "linf"
    steps: int = 40
    rounds: int = 3
    epochs: int = 10
    stride: float = 0.1
    learning_items: int = 512

    def __post_init__(self) -> None:
        more_than_zero(self, "budget", "stride")
        whole(self, "steps", "rounds", "epochs", "learning_items")
        known_norm(self)

    @property
    def name(self) -> str:
        return "substitute"

    @property
    def family(self) -> Family:
        return "transfer"

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        del labels  # the model's own answers are what is learned
        settings = {"rounds": self.rounds, "epochs": self.epochs}
        return knowledge_of(distil(model, inputs, generator=generator, stride=self.stride, **settings))

    def knowing(self, knowledge: Knowledge) -> Attack:
        return Informed(self, knowledge)

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        del model, generator  # only its substitute is attacked, and that from the items themselves
        build = partial(network, tuple(inputs.shape[1:]), len(knowledge[HEAD]))
        student = recalled(build, knowledge, inputs)
        return pgd(student, inputs, labels, budget=self.budget, steps=self.steps, generator=None, norm=self.norm)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
