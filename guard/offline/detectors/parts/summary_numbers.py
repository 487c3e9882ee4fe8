"""The numbers of a summary: confidence, second opinions, gradient and grain of each item, in few operators.

Rule 1: numbers are computed in blocks [item, number], and one logarithm serves all that are read by theirs: a program
pays a few microseconds an operator, which for one item of a small model is what a whole layer costs.

Source: energy, Liu et al. 2020, arXiv:2010.03759; squeezing, Xu et al. 2018, arXiv:1704.01155; correlations of
neighbouring residuals, Pevný et al. 2010 (SPAM, of steganalysis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.offline.data.input_kind import kind_like
from guard.offline.data.planes import place_axes
from guard.offline.detectors.parts.answers import belief, named_of

MAX_RANKED_CLASSES = 3  # of each item: how far the second and the third lie behind the first


@dataclass
class SummaryNumbers:
    """Numbers in blocks [item, number]: read as they are, or by the logarithm of what they are above a floor."""

    plain: list[Tensor] = field(default_factory=list)
    positive: list[Tensor] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)  # of each positive number

    def add_logs(self, values: Tensor, floor: float = 0.0) -> None:
        """Add the logarithms of values [item, number] that are not negative, each plus the floor."""
        self.positive.append(values)
        self.floors += [floor] * values.shape[1]

    def joined(self) -> Tensor:
        """Return all numbers [item, number], logarithms last."""
        logs = (torch.cat(self.positive, dim=1) + torch.tensor(self.floors)).log()
        return torch.cat([*self.plain, logs], dim=1)


def numbers_of(image: Tensor, logits: Tensor, opinions: Sequence[Tensor], gradient: Tensor | None) -> Tensor:
    """Compute the summary numbers of each item [item, number].

    `opinions` are logits [item, class] of second opinions; without a `gradient` nothing is read of it.
    """
    numbers = SummaryNumbers()
    add_answers(numbers, logits, opinions)
    fine = kind_like(image).residual(image)
    if gradient is not None:
        add_direction(numbers, fine.flatten(1), gradient.flatten(1))
    if place_axes(image):
        add_grain(numbers, fine)
    return numbers.joined()


def add_answers(numbers: SummaryNumbers, logits: Tensor, opinions: Sequence[Tensor]) -> None:
    """Add how confident the model is, and how far each second opinion moves probabilities, logits and log-odds."""
    best = logits.topk(min(MAX_RANKED_CLASSES, logits.shape[1]), dim=1).values
    gaps = best[:, :1] - best[:, 1:]
    answers = torch.stack([logits, *opinions], dim=1)  # [item, answer, class], the model's own first
    named = named_of(logits)[:, None].bool()
    logs = answers.log_softmax(dim=2)
    shares, own = logs.exp(), logs[:, 0]
    beliefs = belief(answers, named)
    energy = logits[:, :1] - own[:, :1]
    numbers.plain += [gaps, best[:, :1], energy, beliefs]
    numbers.add_logs(gaps, 1e-2)
    numbers.add_logs(-(own.exp() * own).sum(dim=1, keepdim=True), 1e-4)
    if opinions:
        numbers.plain.append(beliefs[:, :1] - beliefs[:, 1:])
        numbers.add_logs((shares[:, 1:] - shares[:, :1]).abs().sum(dim=2), 1e-4)
        numbers.add_logs(norm(answers[:, 1:] - answers[:, :1], 2), 1e-3)


def add_direction(numbers: SummaryNumbers, fine: Tensor, slope: Tensor) -> None:
    """Add the gradient's size and sparsity, and how the residual lies along it, with and without their sizes.

    Both are [item, value].
    """
    length, total = norm(slope, 1, keepdim=True), slope.abs().sum(dim=1, keepdim=True)
    up, rough = slope.sign(), fine.sign()
    numbers.add_logs(length, 1e-9)
    numbers.add_logs((total + 1e-9) / (length + 1e-9))
    numbers.plain += [
        (fine * slope).sum(dim=1, keepdim=True) / (length * norm(fine, 1, keepdim=True) + 1e-9),
        (fine * up).sum(dim=1, keepdim=True) / (fine.abs().sum(dim=1, keepdim=True) + 1e-9),
        (rough * slope).sum(dim=1, keepdim=True) / (total + 1e-9),
        (rough * up).mean(dim=1, keepdim=True),
    ]


def add_grain(numbers: SummaryNumbers, fine: Tensor) -> None:
    """Add size and peakedness of an image's or a series' residual, and its correlations with its neighbours."""
    flat = fine.flatten(1)
    squares = flat.square()
    power = squares.mean(dim=1, keepdim=True) + 1e-8
    numbers.add_logs(power)
    numbers.add_logs(flat.abs().mean(dim=1, keepdim=True), 1e-4)
    numbers.add_logs((squares.square().mean(dim=1, keepdim=True) + 1e-12) / power.square())
    sides = [(axis, fine.shape[axis] - 1) for axis in place_axes(fine)]
    along = [
        (fine.narrow(axis, 1, size) * fine.narrow(axis, 0, size)).flatten(1).mean(dim=1, keepdim=True)
        for axis, size in sides
    ]
    across = [(fine[:, 1:] * fine[:, :-1]).flatten(2).mean(dim=2)] if fine.shape[1] > 1 else []
    numbers.plain.append(torch.cat([*along, *across], dim=1) / power)


def norm(vectors: Tensor, axis: int, *, keepdim: bool = False) -> Tensor:
    """Return the length of vectors along an axis, with a gradient that is finite at zero too."""
    return (vectors.square().sum(dim=axis, keepdim=keepdim) + 1e-24).sqrt()
