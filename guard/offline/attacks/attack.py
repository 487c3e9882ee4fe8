"""Seam of every attack: a frozen value that prints as the call that makes it.

Rule 1: an attack changes nothing that it is given, nor the model's parameters, their gradients or global randomness.
Rule 2: what it returns lies in the unit box and, where it has a budget, in the ball around the inputs.
Rule 3: it promises no success: before an item counts as attacked, the caller verifies it (`crafting/` does).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from numbers import Real
from typing import Any, Literal, Protocol, Self, TypeGuard, get_args

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.model import Model
from guard.offline.attacks.ranges import Amount, ends
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.data.norms import Measure, Norm
from guard.offline.networks.weights import Knowledge

# What an attack asks the model for: its answers alone, the gradient of a function of its logits, the outputs of its
# layers, or a gradient's own gradient. The last two are asked of the torch module behind a compiled model.
Asks = Literal["answers", "gradient", "layers", "curvature"]


class Family(StrEnum):
    """Kind of attack; a guard fitted without a family is tested on all attacks of it.

    `min_verified_items` are those that make a row of a report more than an indication, `shard_items` as many as are
    attacked in one batch, where that is not only a matter of memory.
    """

    min_verified_items: int
    shard_items: int | None

    def __new__(cls, text: str, min_verified_items: int = 200, shard_items: int | None = None) -> Self:
        member = str.__new__(cls, text)
        member._value_ = text
        member.min_verified_items = min_verified_items
        member.shard_items = shard_items
        return member

    SINGLE_STEP = "single-step"
    HIGH_CONFIDENCE = "high-confidence"
    LOW_CONFIDENCE = "low-confidence"
    UNIVERSAL = "universal"  # one perturbation for all items
    PATCH = "patch"  # a region is replaced
    QUERY = "query", 60, 16  # asks for answers alone, thousands of them an item
    TRANSFER = "transfer"  # crafted on another model
    SPATIAL = "spatial"
    INTERPRETATION = "interpretation"  # aims at the model's explanations, or is led by them


@dataclass(frozen=True)
class Traits:
    """Requirements of an attack, stated by its class whatever its settings are."""

    asks: Asks = "gradient"
    learns: bool = False  # from clean items, before it attacks any
    features: bool = False  # is told of a table's features: their ranges, steps, categories and costs
    package: str | None = None  # the package of the extra `attacks` that runs it
    kinds: Kinds = EVERY_KIND  # of input that it applies to
    ranges: tuple[str, ...] = ()  # settings that may be ranges [low, high]
    choices: tuple[str, ...] = ()  # settings that may be lists of values
    draws_for_batch: bool = False  # at random and at once, so that an item's draw depends on its batch mates
    covers: bool = False  # its budget is the share of an item's pixels, steps or features that it covers


class Attack(Protocol):
    """Attack method with its settings."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    @property
    def norm(self) -> Measure: ...

    @property
    def traits(self) -> Traits: ...

    @property
    def budget(self) -> Amount | None:
        """Largest perturbation in unit space and in `norm`; None for attacks that look for the smallest one.

        A range where each item draws its own, and once it is drawn a tensor [item].
        """
        ...

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Attack unit-space inputs [item, ...] with labels [item]; return attacked inputs of the same shape."""
        ...


class LearningAttack(Attack, Protocol):
    """Attack that learns one thing from clean items before it attacks any: a universal perturbation, a substitute.

    Its traits say so. The caller lets it learn first (`crafting/` does); called without, it raises ValueError.
    """

    @property
    def learning_items(self) -> int:
        """Largest number of clean items to learn from."""
        ...

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        """Learn from unit-space inputs [item, ...] and labels [item]; Rule 1 holds."""
        ...

    def informed(
        self, knowledge: Knowledge, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Attack inputs with this knowledge; the other arguments and the result are those of an Attack."""
        ...


class FeatureAttack(Attack, Protocol):
    """Attack that looks at what each feature of a table may be, and at what changing it costs. Its traits say so."""

    def among(
        self, grid: FeatureGrid, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Attack items of a table, on its grid; the other arguments and the result are those of an Attack."""
        ...


def knows_features(attack: Attack) -> TypeGuard[FeatureAttack]:
    """Return whether an attack is told of a table's features."""
    return attack.traits.features


def learns(attack: Attack) -> TypeGuard[LearningAttack]:
    """Return whether an attack learns before it attacks."""
    return attack.traits.learns


def call_text(attack: Any) -> str:
    """Return the call that makes this value; settings that are None were not given."""
    settings = ((field.name, getattr(attack, field.name)) for field in fields(attack))
    return f"{attack.name}({', '.join(f'{name}={value!r}' for name, value in settings if value is not None)})"


def more_than_zero(attack: Any, *names: str) -> None:
    """Check that settings are finite numbers above zero, or None. Raises ConfigError."""
    for name in names:
        value = getattr(attack, name)
        if value is None:
            continue
        for end in ends(value):
            if isinstance(end, bool) or not isinstance(end, Real) or not 0 < float(end) < float("inf"):
                raise ConfigError(f"attack {attack.name!r}: {name} = {value!r}; wanted a number above zero")


def whole(attack: Any, *names: str) -> None:
    """Check that settings are whole numbers above zero, or None. Raises ConfigError."""
    for name in names:
        value = getattr(attack, name)
        if value is None:
            continue
        for end in ends(value):
            if isinstance(end, bool) or not isinstance(end, int) or end < 1:
                raise ConfigError(f"attack {attack.name!r}: {name} = {value!r}; wanted a whole number above zero")


def known_norm(attack: Any) -> None:
    """Check that the attack's norm has a ball. Raises ConfigError."""
    if attack.norm not in get_args(Norm):
        raise ConfigError(f"attack {attack.name!r}: norm = {attack.norm!r}; wanted one of {', '.join(get_args(Norm))}")
