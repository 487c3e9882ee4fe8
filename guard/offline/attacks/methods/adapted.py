"""Attacks that foolbox and pyautoattack run for us, as values; how they are run is in `adapter.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.adapter import Loss, apgd, boundary, fab, hop_skip_jump, installed, square
from guard.offline.attacks.attack import Family, Traits, call_text, known_norm, more_than_zero, whole
from guard.offline.attacks.model import Model
from guard.offline.data.kind_names import ONLY_IMAGES
from guard.offline.data.norms import Measure, Norm


@dataclass(frozen=True, repr=False)
class Apgd:
    """Auto-PGD: PGD that sets its own step, on cross-entropy or on the scaled difference of logits."""

    name: ClassVar[str] = "apgd"
    family: ClassVar[Family] = Family.HIGH_CONFIDENCE
    traits: ClassVar[Traits] = Traits(package="pyautoattack", draws_for_batch=True)

    budget: float
    norm: Norm = "linf"
    steps: int = 100
    starts: int = 1
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        more_than_zero(self, "budget")
        whole(self, "steps", "starts")
        known_norm(self)
        if self.loss not in get_args(Loss):
            raise ConfigError(f"attack {self.name!r}: loss = {self.loss!r}; wanted one of {', '.join(get_args(Loss))}")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        installed(self)
        return apgd(
            model,
            inputs,
            labels,
            budget=self.budget,
            steps=self.steps,
            starts=self.starts,
            generator=generator,
            norm=self.norm,
            loss=self.loss,
        )

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class Square:
    """Square attack: random search with squares, on logits alone."""

    name: ClassVar[str] = "square"
    family: ClassVar[Family] = Family.QUERY
    traits: ClassVar[Traits] = Traits(asks="answers", package="pyautoattack", kinds=ONLY_IMAGES, draws_for_batch=True)

    budget: float
    norm: Norm = "linf"
    queries: int = 1000

    def __post_init__(self) -> None:
        more_than_zero(self, "budget")
        whole(self, "queries")
        known_norm(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        installed(self)
        return square(
            model, inputs, labels, budget=self.budget, queries=self.queries, generator=generator, norm=self.norm
        )

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class Fab:
    """FAB: the nearest fooling point, by a walk along the boundary."""

    name: ClassVar[str] = "fab"
    family: ClassVar[Family] = Family.LOW_CONFIDENCE
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(package="pyautoattack")

    norm: Norm = "linf"
    steps: int = 100
    classes: int = 10

    def __post_init__(self) -> None:
        whole(self, "steps", "classes")
        known_norm(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        installed(self)
        del generator  # nothing is drawn
        return fab(model, inputs, labels, steps=self.steps, norm=self.norm, classes=self.classes)

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class HopSkipJump:
    """HopSkipJump: the nearest fooling point from answers alone, by estimated gradients."""

    name: ClassVar[str] = "hop_skip_jump"
    family: ClassVar[Family] = Family.QUERY
    norm: ClassVar[Measure] = "l2"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(asks="answers", package="foolbox", draws_for_batch=True)

    queries: int = 5000
    evaluations: int = 100

    def __post_init__(self) -> None:
        whole(self, "queries", "evaluations")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        installed(self)
        return hop_skip_jump(
            model, inputs, labels, queries=self.queries, evaluations=self.evaluations, generator=generator
        )

    def __repr__(self) -> str:
        return call_text(self)


@dataclass(frozen=True, repr=False)
class Boundary:
    """Boundary attack: the nearest fooling point from answers alone, by a random walk."""

    name: ClassVar[str] = "boundary"
    family: ClassVar[Family] = Family.QUERY
    norm: ClassVar[Measure] = "l2"
    budget: ClassVar[float | None] = None
    traits: ClassVar[Traits] = Traits(asks="answers", package="foolbox", draws_for_batch=True)

    queries: int = 5000

    def __post_init__(self) -> None:
        whole(self, "queries")

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        installed(self)
        return boundary(model, inputs, labels, queries=self.queries, generator=generator)

    def __repr__(self) -> str:
        return call_text(self)
