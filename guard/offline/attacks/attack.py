"""The seam of every attack: a frozen value that prints as the call that makes it.

Rule 1: an attack changes nothing that it is given, nor the model's parameters, their gradients or global randomness.
Rule 2: what it returns lies in the unit box and, where it has a budget, in the ball around the inputs.
Rule 3: it promises no success. Whoever calls an item attacked verifies that first (craft.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.data.norms import Measure, Norm
from guard.offline.networks.weights import Knowledge

Model: TypeAlias = Callable[[Tensor], Tensor]  # unit-space inputs [item, ...] -> logits [item, class]
Family = Literal[
    "single-step",
    "high-confidence",
    "low-confidence",
    "universal",  # one perturbation for all items
    "patch",  # a region is replaced
    "query",  # asks for answers alone
    "transfer",  # crafted on another model
    "spatial",
    "interpretation",  # aims at what explains the model, or is led by it
]


class Attack(Protocol):
    """A method with its settings."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    @property
    def norm(self) -> Measure: ...

    @property
    def budget(self) -> float | None:
        """Largest perturbation in unit space and in `norm`; None for attacks that look for the smallest one."""
        ...

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Unit-space inputs [item, ...] and labels [item] -> attacked inputs, of the same shape."""
        ...


@runtime_checkable
class LearningAttack(Protocol):
    """An attack that learns one thing from clean items before it attacks any: a universal perturbation, a substitute.

    Whoever calls it lets it learn first (craft.py does); called without, it raises ValueError.
    """

    @property
    def learning_items(self) -> int:
        """How many clean items it wants to learn from, at most."""
        ...

    def learn(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        """From unit-space inputs [item, ...] and labels [item]; Rule 1 holds."""
        ...

    def knowing(self, knowledge: Knowledge) -> Attack:
        """The same attack with this knowledge; it prints as it did before."""
        ...


@runtime_checkable
class TorchOnly(Protocol):
    """An attack that looks into the model, or differentiates it twice: a compiled model will not do.

    Called with anything but a torch module, bare or watched, it raises ValueError.
    """

    @property
    def torch_only(self) -> bool: ...


def check_torch(attack: Any, model: Model) -> None:
    """Raises ValueError where there is no torch module to be found."""
    if not isinstance(model, nn.Module) and not isinstance(getattr(model, "model", None), nn.Module):
        raise ValueError(
            f"attack {attack.name!r} needs the model as a torch module; got {type(model).__name__}. "
            "Hand over the classifier's graph, not the compiled model"
        )


def call_text(attack: Any) -> str:
    """The call that makes this value; settings that are None were not given."""
    settings = ((field.name, getattr(attack, field.name)) for field in fields(attack))
    return f"{attack.name}({', '.join(f'{name}={value!r}' for name, value in settings if value is not None)})"


def more_than_zero(attack: Any, *names: str) -> None:
    """Raises ConfigError for a setting that is not a finite number above zero; None passes."""
    for name in names:
        value = getattr(attack, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
            raise ConfigError(f"attack {attack.name!r}: {name} = {value!r}; wanted a number above zero")


def whole(attack: Any, *names: str) -> None:
    """Raises ConfigError for a setting that is not a whole number above zero; None passes."""
    for name in names:
        value = getattr(attack, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"attack {attack.name!r}: {name} = {value!r}; wanted a whole number above zero")


def known_norm(attack: Any) -> None:
    """Raises ConfigError for a norm that there is no ball for."""
    if attack.norm not in get_args(Norm):
        raise ConfigError(f"attack {attack.name!r}: norm = {attack.norm!r}; wanted one of {', '.join(get_args(Norm))}")
