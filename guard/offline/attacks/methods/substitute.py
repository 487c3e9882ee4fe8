"""Substitute network distilled from the model's answers, and the transfer of what fools it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.methods.pgd import pgd
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.objective import chosen
from guard.offline.data.norms import Norm
from guard.offline.networks.architectures import small_classifier
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import Knowledge, drawn, knowledge_of, recalled

ASKED_ROWS = 64  # inputs asked at once
HEAD = "head.bias"  # whose length is the number of classes


def distil(
    model: Model,
    inputs: Tensor,
    *,
    generator: torch.Generator,
    rounds: int = 3,
    epochs: int = 10,
    stride: float = 0.1,
) -> nn.Module:
    """Train a small network that answers as `model` does, on its answers alone: inputs * 2^rounds of them.

    Each round doubles the items: every one is moved by `stride` along the sign of the substitute's own gradient for the
    class that the model named, to where the two are likely to differ, and the model is asked again.

    Source: Papernot et al. 2017, arXiv:1602.02697, section 4. They read labels; ours reads the logits' softmax.
    """
    answers = ask(model, inputs)
    student = drawn(partial(small_classifier, tuple(inputs.shape[1:]), answers.shape[1]), generator, inputs)
    learn(student, inputs, answers, epochs, generator)
    for _ in range(rounds):
        further = augmented(student, inputs, answers.argmax(dim=1), stride)
        inputs, answers = torch.cat([inputs, further]), torch.cat([answers, ask(model, further)])
        learn(student, inputs, answers, epochs, generator)
    return student.requires_grad_(False)


def ask(model: Model, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(ASKED_ROWS)])


def learn(student: nn.Module, inputs: Tensor, answers: Tensor, epochs: int, generator: torch.Generator) -> None:
    """Train the substitute by the mean cross-entropy of its outputs with what the model answered."""
    wanted = answers.softmax(dim=1)
    cross_entropy = nn.functional.cross_entropy
    train(
        student,
        len(inputs),
        lambda index: cross_entropy(student(inputs[index]), wanted[index]),
        Schedule(epochs),
        generator,
    )


def augmented(student: nn.Module, inputs: Tensor, named: Tensor, stride: float) -> Tensor:
    parts = zip(inputs.split(ASKED_ROWS), named.split(ASKED_ROWS), strict=True)
    rises = [TorchModel(student).value_and_gradient(part, partial(chosen, classes=own))[2] for part, own in parts]
    return (inputs + stride * torch.cat(rises).sign()).clamp(0, 1)


@dataclass(frozen=True, repr=False)
class Substitute:
    """PGD on the substitute as a value: the model itself is asked nothing more once the substitute has learned."""

    name: ClassVar[str] = "substitute"
    family: ClassVar[Family] = Family.TRANSFER
    traits: ClassVar[Traits] = Traits(asks="answers", learns=True)

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

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        del labels  # the model's own answers are what is learned
        settings = {"rounds": self.rounds, "epochs": self.epochs}
        return knowledge_of(distil(model, inputs, generator=generator, stride=self.stride, **settings))

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        del model, generator  # only its substitute is attacked, and that from the items themselves
        build = partial(small_classifier, tuple(inputs.shape[1:]), len(knowledge[HEAD]))
        student = recalled(build, knowledge, inputs)
        return pgd(
            TorchModel(student), inputs, labels, budget=self.budget, steps=self.steps, generator=None, norm=self.norm
        )

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        del model, inputs, labels, generator
        raise untaught(self)

    def __repr__(self) -> str:
        return call_text(self)
