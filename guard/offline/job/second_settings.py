"""Settings of the second network that a training makes: the [second] block of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

from guard.errors import ConfigError

Kind = Literal["natural", "augmented", "robust_verifier", "distilled"]
ASKING = ("second_opinion", "second_entropy")  # detectors that ask second networks


@dataclass(frozen=True)
class SecondSettings:
    """Settings of the network that is trained where --second-data is given; epochs are the most that there are."""

    kind: Kind = "robust_verifier"
    augment: bool = True  # turned, covered, noisy and recoloured images; `natural` does without
    natural_epochs: int = 8
    robust_epochs: int = 16
    budget: float = 4 / 255  # of the perturbations that a robust verifier learns against
    forwards: float = 0.3  # of the model's multiply-adds: what it may cost

    @property
    def wide(self) -> bool:
        return self.augment and self.kind != "natural"

    @property
    def epochs(self) -> tuple[int, int]:
        """Natural and robust epochs, at most."""
        return self.natural_epochs, self.robust_epochs if self.kind == "robust_verifier" else 0


def second_settings(raw: Any, origin: str) -> SecondSettings:
    """Return the settings of a [second] block. Raises ConfigError for one that is unknown or out of range."""
    known = {field.name: field for field in fields(SecondSettings)}
    if not isinstance(raw, Mapping) or set(raw) - set(known):
        found = sorted(set(raw) - set(known))[0] if isinstance(raw, Mapping) else raw
        raise ConfigError(f"recipe {origin}: unknown key {found!r} in [second]; known: {', '.join(known)}")
    if raw.get("kind", "natural") not in get_args(Kind):
        raise ConfigError(
            f"recipe {origin}: [second] kind = {raw['kind']!r}; wanted one of {', '.join(get_args(Kind))}"
        )
    wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "augment": (truth, "true or false"),
        "natural_epochs": (positive, "a whole number from 1"),
        "robust_epochs": (positive, "a whole number from 1"),
        "budget": (partial(number, low=1e-6, high=1.0), "a number from 0 to 1"),
        "forwards": (partial(number, low=0.01, high=4.0), "a number from 0.01 to 4"),
    }
    for key, (fits, words) in wanted.items():
        if key in raw and not fits(raw[key]):
            raise ConfigError(f"recipe {origin}: [second] {key} = {raw[key]!r}; wanted {words}")
    return SecondSettings(**raw)


def truth(value: Any) -> bool:
    return isinstance(value, bool)


def positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
