"""Student of a closed model: a small network, distilled from the model's answers to clean items and to what is around.

How it works. The model is asked on clean items and, in equal parts, on noisy, mixed and boxed ones and on its own
boundary between pairs of items. The student learns its shares of classes. Then, round by round, the student's own
gradient leads clean items to where it would change its answer: there the model is asked as well, between such an item
and its clean version its boundary is looked for, and the student learns on. So it is best where attacks will go.

Source: Papernot et al. 2017, arXiv:1602.02697, section 4 (rounds along the student's gradient); Hinton et al. 2015,
arXiv:1503.02531 (shares as targets). Theirs ask along the gradient alone, and learn from labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.offline.closed.surroundings import Ask, boundary, boxed, mixed, noisy
from guard.offline.data.grid import Grid, Images, snap
from guard.offline.networks.architectures import small_classifier, wide_perceptron
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import drawn

LED_ROUNDS = 3
CLEAN_SHARE = 0.3  # of the loss: that much weight have the clean items, however few they are
FIRST_SHARE = 0.55  # of the questions, before the student leads
TRAINING_STEPS, ROUND_STEPS = 2000, 1000  # of the student, at first and in each round
BATCH_ITEMS, MAX_EPOCHS = 128, 40
MOVE_SHARES = (0.01, 0.25)  # of the box: how far items are led, smallest and largest
LED_STEPS = 5  # along the student's gradient
MIN_DEVIATION = 1e-3  # of a feature, below which it is not stretched further
HARD_SHARE = 0.25  # of the target: the class that the model names, beside its shares
Tell = Callable[[str], None]


class Standardised(nn.Module):
    """A network behind a standardisation of its inputs that it does not learn."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / deviation)
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body((images - self.mean) * self.scale)
        return logits


def blank_student(shape: tuple[int, ...], classes: int) -> Standardised:
    """Build a student without knowledge, for weights to be put back into."""
    return Standardised(torch.zeros(shape), torch.ones(shape), body_of(shape, classes))


def body_of(shape: tuple[int, ...], classes: int) -> nn.Module:
    return small_classifier(shape, classes) if len(shape) > 1 else wide_perceptron(shape, classes)


@dataclass(frozen=True, eq=False)
class Lesson:
    """Items that a closed model has answered, and how much each weighs."""

    items: Images
    shares: NDArray[np.float32]  # [item, class]
    weights: NDArray[np.float32]  # [item]

    def joined(self, items: Images, shares: NDArray[np.float32]) -> Lesson:
        """Return this lesson with further items, of weight one."""
        ones = np.ones(len(items), np.float32)
        return Lesson(
            np.concatenate([self.items, items]),
            np.concatenate([self.shares, shares]),
            np.concatenate([self.weights, ones]),
        )


def distil(
    ask: Ask, clean: Images, *, grid: Grid, questions: int, generator: torch.Generator, tell: Tell
) -> tuple[nn.Module, int]:
    """Distil a student from at most so many answers, and return it with the number of them.

    It maps unit-space items [item, ...] to logits [item, class]. Raises ModelError where the model cannot answer.
    """
    dice = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    lesson = first_lesson(ask, clean, grid, int(questions * FIRST_SHARE), dice)
    shape, classes = tuple(clean.shape[1:]), lesson.shares.shape[1]
    values = torch.from_numpy(clean)
    deviation = values.std(dim=0, unbiased=False).clamp(min=MIN_DEVIATION)
    body = drawn(partial(body_of, shape, classes), generator, values)
    student = Standardised(values.mean(dim=0), deviation, body)
    tell(f"the student learns from {len(lesson.items):,} answers")
    learn(student, lesson, TRAINING_STEPS, generator)
    each = (questions - len(lesson.items)) // LED_ROUNDS
    for number in range(LED_ROUNDS):
        lesson = further_lesson(ask, student, lesson, clean, grid, each, dice)
        tell(f"round {number + 1} of {LED_ROUNDS}: the student learns from {len(lesson.items):,} answers")
        learn(student, lesson, ROUND_STEPS, generator)
    return student.eval().requires_grad_(False), len(lesson.items)


def first_lesson(ask: Ask, clean: Images, grid: Grid, items: int, dice: np.random.Generator) -> Lesson:
    """Ask about clean items and, in equal parts, the four kinds of items around them."""
    part = max(1, (items - len(clean)) // 4)
    around = [make(clean, part, dice) for make in (noisy, mixed, boxed)]
    asked = snap(np.concatenate([clean, *around]), grid)
    pairs = max(1, part // 7)
    first, second = (clean[dice.integers(0, len(clean), pairs)] for _ in range(2))
    weight = max(1.0, CLEAN_SHARE / (1 - CLEAN_SHARE) * (len(asked) + part) / len(clean))
    weights = np.ones(len(asked), np.float32)
    weights[: len(clean)] = weight
    return Lesson(asked, ask(asked), weights).joined(*boundary(first, second, ask, grid))


def further_lesson(
    ask: Ask,
    student: nn.Module,
    lesson: Lesson,
    clean: Images,
    grid: Grid,
    items: int,
    dice: np.random.Generator,
) -> Lesson:
    """Ask about items that the student's gradient leads over its boundary, and about the model's on the way there."""
    chosen = clean[dice.integers(0, len(clean), max(1, items // 2))]
    there = snap(led(student, chosen, dice), grid)
    lesson = lesson.joined(there, ask(there))
    pairs = slice(max(1, items // 2 // 6))
    return lesson.joined(*boundary(chosen[pairs], there[pairs], ask, grid))


def led(student: nn.Module, clean: Images, dice: np.random.Generator) -> Images:
    """Return clean items moved along the student's gradient, away from its answer, each by a size of its own.

    Half are moved by signs, as attacks within L-infinity are, half along the gradient itself.
    """
    points = torch.from_numpy(clean)
    low, high = np.log(MOVE_SHARES)
    each = (len(clean),) + (1,) * (clean.ndim - 1)
    size = torch.from_numpy(np.exp(dice.uniform(low, high, each)).astype(np.float32))
    signs = torch.from_numpy(dice.random(each) < 0.5)
    with torch.no_grad():
        named = student(points).argmax(dim=1)
    for _ in range(LED_STEPS):
        with torch.enable_grad():
            watched = points.detach().requires_grad_()
            loss = nn.functional.cross_entropy(student(watched), named, reduction="sum")
            (slope,) = torch.autograd.grad(loss, watched)
        largest = slope.abs().flatten(1).amax(dim=1).clamp(min=1e-12).reshape(each)
        points = (points + size / LED_STEPS * torch.where(signs, slope.sign(), slope / largest)).clamp(0, 1)
    return points.detach().numpy()


def learn(student: nn.Module, lesson: Lesson, steps: int, generator: torch.Generator) -> None:
    """Train the student by its weighted cross-entropy with what the model answered."""
    items, shares = torch.from_numpy(lesson.items), torch.from_numpy(lesson.shares)
    hard = nn.functional.one_hot(shares.argmax(dim=1), shares.shape[1]).float()
    weights, wanted = torch.from_numpy(lesson.weights), (1 - HARD_SHARE) * shares + HARD_SHARE * hard
    epochs = min(max(1, round(steps * BATCH_ITEMS / len(items))), MAX_EPOCHS)

    def loss(index: Tensor) -> Tensor:
        apart = nn.functional.cross_entropy(student(items[index]), wanted[index], reduction="none")
        return (apart * weights[index]).sum() / weights[index].sum()

    train(student.train().requires_grad_(), len(items), loss, Schedule(epochs, BATCH_ITEMS), generator)
    student.eval()
