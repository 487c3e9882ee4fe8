"""Ranges of an attack's settings: what a recipe gives as a list, each item draws a value of its own from.

Rule 1: what an item draws follows from the attack, the seed and the item's content hash alone: no shard, batch, number
of workers or interruption changes it.
Rule 2: a number is drawn evenly in its logarithm, from `low` to `high`; a choice is drawn evenly from those listed.
Rule 3: an attack that learns one thing for many items draws its budget once, when it learns.

How it works. An attack's traits name the settings that may be ranges. `Pgd(budget=[0.01, 0.04], steps=[5, 40])` holds
two values of type `Range`, and prints as it is written. Before it is called `drawn_for` puts a tensor [item] in the
place of each of them; half of the budgets then lie below 0.02, and half of the steps below 14.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.networks.weights import Knowledge

AttackT = TypeVar("AttackT")
DRAW_POINTS = 2**53  # places between 0 and 1 that a draw may have, as many as a float64 tells apart
BUDGET = "budget"
COUNTS = ("steps",)  # settings that are whole numbers


@dataclass(frozen=True, repr=False)
class Range:
    """Range of a number, both ends included, from which each item draws its own."""

    low: float
    high: float
    whole: bool = False

    def at(self, places: Tensor) -> Tensor:
        """Return the numbers [item] at places [item] from 0 to 1; between them the logarithm grows evenly."""
        if self.whole:  # each whole number's share reaches to the next one
            return (self.low * ((self.high + 1) / self.low) ** places).floor().clamp(self.low, self.high).long()
        return (self.low * (self.high / self.low) ** places).clamp(self.low, self.high)

    def __repr__(self) -> str:
        return f"[{self.low!r}, {self.high!r}]"


@dataclass(frozen=True, repr=False)
class AnyOf:
    """Several values of a setting, of which each item draws one."""

    values: tuple[Any, ...]

    def at(self, places: Tensor) -> tuple[Any, ...]:
        """Return the values [item] at places [item] from 0 to 1."""
        last = len(self.values) - 1
        return tuple(self.values[min(int(place * len(self.values)), last)] for place in places.tolist())

    def __repr__(self) -> str:
        return repr(list(self.values))


# A number, a range of it, or once it is drawn a number for each item [item].
Amount: TypeAlias = float | Range | Tensor
Count: TypeAlias = int | Range | Tensor


def take_ranges(attack: Any) -> None:
    """Turn the settings that were given as lists into ranges and choices. Raises ConfigError.

    Called when an attack is made, before its settings are checked.
    """
    for field in fields(attack):
        value = getattr(attack, field.name)
        if isinstance(value, list | tuple):
            object.__setattr__(attack, field.name, read(attack.name, attack.traits, field.name, list(value)))


def read(attack: str, traits: Any, name: str, values: Sequence[Any]) -> Range | AnyOf:
    """Return a list's range or choice. Raises ConfigError where this setting takes none, or not this one."""
    if name not in (*traits.ranges, *traits.choices):
        raise ConfigError(f"attack {attack!r}: {name} = {list(values)!r}; {takes(traits)}")
    if name in traits.choices:
        if len(values) < 2 or len(set(map(repr, values))) < len(values):
            raise ConfigError(f"attack {attack!r}: {name} = {list(values)!r}; wanted two different values or more")
        return AnyOf(tuple(values))
    if len(values) != 2 or not all(type(one) in (int, float) for one in values):
        raise ConfigError(
            f"attack {attack!r}: {name} = {list(values)!r}; wanted a number, or a range of two: [low, high]"
        )
    low, high = values
    if not 0 < float(low) < float(high) < float("inf"):
        raise ConfigError(
            f"attack {attack!r}: {name} = {list(values)!r}; wanted a range [low, high] with 0 < low < high"
        )
    if name in COUNTS:
        return Range(low, high, whole=True)
    return Range(float(low), float(high))


def takes(traits: Any) -> str:
    """Return which settings of an attack may be lists, as a clause of an error message."""
    ranges = f"ranges [low, high] are taken for {', '.join(traits.ranges)}" if traits.ranges else ""
    choices = f"lists of values for {', '.join(traits.choices)}" if traits.choices else ""
    return "; ".join(filter(None, (ranges, choices))) or "wanted one value: this attack takes no ranges"


def ranged(attack: Any) -> tuple[str, ...]:
    """Return the names of the settings that are ranges or choices."""
    return tuple(f.name for f in fields(attack) if isinstance(getattr(attack, f.name), Range | AnyOf))


def ends(value: Any) -> tuple[Any, ...]:
    """Return all that a setting may be: a range's two ends, a choice's values, or the one value itself."""
    match value:
        case Range():
            return (value.low, value.high)
        case AnyOf():
            return value.values
        case _:
            return (value,)


def smallest(value: Any) -> float | None:
    """Return the least that a number or range can be; of numbers drawn already, the least of them."""
    return None if value is None else float(value.min()) if isinstance(value, Tensor) else float(ends(value)[0])


def largest(value: Any) -> float | None:
    """Return the most that a number or range can be; of numbers drawn already, the most of them."""
    return None if value is None else float(value.max()) if isinstance(value, Tensor) else float(ends(value)[-1])


def drawn_for(attack: AttackT, hashes: Collection[str], seed: int, *, step: float | None = None) -> AttackT:
    """Return the attack with a value for each item, by its content hash, in the place of each range and choice.

    Without any it is the attack itself; one that learns keeps its ranges, of which it draws when it learns. `step` is
    what L-infinity budgets are rounded to multiples of, within the range.
    """
    traits: Any = getattr(attack, "traits", None)
    if traits.learns:
        return attack
    places = {name: places_of(f"{seed} {attack!r} {name}", hashes) for name in ranged(attack)}
    return drawn(attack, places, step=step)


def places_of(key: str, hashes: Collection[str]) -> Tensor:
    """Return a place from 0 to 1 for each item [item], evenly spread, from its content hash and a key."""
    digests = (hashlib.sha256(f"{key} {one}".encode()).digest() for one in hashes)
    return torch.tensor(
        [(int.from_bytes(digest[:7], "big") % DRAW_POINTS) / DRAW_POINTS for digest in digests], dtype=torch.float64
    )


def drawn(attack: AttackT, places: Mapping[str, Tensor], *, step: float | None = None) -> AttackT:
    """Return the attack with values [item] at `places` [item] in the place of its ranges and choices."""
    values = {name: getattr(attack, name).at(place) for name, place in places.items()}
    if step is not None and BUDGET in values and getattr(attack, "norm", None) == "linf":
        values[BUDGET] = to_steps(getattr(attack, BUDGET), values[BUDGET], step)
    return with_values(attack, values)


def to_steps(of: Range, budgets: Tensor, step: float) -> Tensor:
    """Round budgets [item] to whole steps, to no fewer than one and not out of the range."""
    most = max(int(np.floor(of.high / step + 1e-6)), 1)
    least = min(max(int(np.ceil(of.low / step - 1e-6)), 1), most)
    return (budgets / step).round().clamp(least, most) * step


def with_values(attack: AttackT, values: Mapping[str, Any]) -> AttackT:
    """Return the attack with other values of some settings, which are not checked."""
    if not values:
        return attack
    own = copy.copy(attack)
    for name, value in values.items():
        object.__setattr__(own, name, value)
    return own


def drawn_once(attack: AttackT, generator: torch.Generator) -> tuple[AttackT, Knowledge]:
    """Return an attack that learns, with one budget drawn where it has a range, and that budget as knowledge."""
    budget = getattr(attack, BUDGET, None)
    if not isinstance(budget, Range):
        return attack, {}
    place = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    one = budget.at(place).float()
    return with_values(attack, {BUDGET: float(one)}), {BUDGET: one}


def as_learned(attack: AttackT, knowledge: Knowledge) -> AttackT:
    """Return an attack that learned, with the budget that it drew then."""
    return with_values(attack, {BUDGET: float(knowledge[BUDGET])} if BUDGET in knowledge else {})


def settled(value: Any) -> Any:
    """Return a setting's value, or its values [item]. Raises ValueError for a range that nothing was drawn from."""
    if isinstance(value, Range | AnyOf):
        raise ValueError(
            f"{value!r} is a range, and no item has drawn from it yet; call drawn_for first, as craft does"
        )
    return value
