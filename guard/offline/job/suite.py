"""A suite: attacks that a bundle is evaluated against, as data that a user can copy.

`every_attack` makes a suite complete by construction: whatever is listed in the table of attacks and has no block of
its own is added. For example `every_attack = { linf = 0.03, l0 = 0.05 }` with a block for PGD gives PGD as the block
says, FGSM at 0.03, patches of 5 % of the pixels, and DeepFool, which needs no budget, as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.table import ATTACKS, budget_norm, build_attack
from guard.offline.data.norms import Measure
from guard.offline.job.recipe import attacks_of, tables
from guard.offline.job.toml_files import content_of, names_in, own_text, users_text

KEYS = {"description", "every_attack", "attack"}
NORMS = tuple(norm for norm in get_args(Measure) if norm != "none")  # those that measure a budget


@dataclass(frozen=True)
class Suite:
    """A suite's attacks in the order in which they are reported; none is learned from."""

    name: str
    description: str
    attacks: tuple[Attack, ...]


def suites() -> tuple[str, ...]:
    """Return the names of the suites that come with the guard."""
    return names_in("suites")


def load_suite(name_or_file: str) -> Suite:
    """Load a suite by name, or from a file of the user's own.

    Raises:
        ConfigError: names the suite and what in it is unknown, missing or out of range. A package that an attack needs
            is missed when the attack is run.
    """
    name = name_or_file
    if name in suites():
        text = own_text("suites", name)
    elif Path(name).suffix == ".toml":
        text = users_text("suite", Path(name))
    else:
        raise ConfigError(f"unknown suite {name!r}; there are: {', '.join(suites())}; a file's name ends in .toml")
    return parse_suite(content_of("suite", name, text), name)


def parse_suite(raw: Mapping[str, Any], origin: str) -> Suite:
    """Build a suite from its TOML content. Raises ConfigError as `load_suite` does."""
    if unknown := set(raw) - KEYS:
        raise ConfigError(f"suite {origin}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(KEYS))}")
    try:
        attacks = attacks_of(tables(raw, "attack", origin), origin)
        if "every_attack" in raw:
            attacks = completed(attacks, budgets_by_norm(raw["every_attack"]))
    except ConfigError as error:
        raise ConfigError(f"suite {origin}: {error}") from error
    if not attacks:
        raise ConfigError(f"suite {origin} lists no [[attack]]; at least one is needed")
    calls = [repr(attack) for attack in attacks]
    if twice := [call for call in calls if calls.count(call) > 1]:
        raise ConfigError(f"suite {origin}: {twice[0]} is listed twice; once is all that can be told apart")
    return Suite(Path(origin).stem, str(raw.get("description", "")), attacks)


def budgets_by_norm(raw: Any) -> dict[str, float]:
    """Return the budgets that `every_attack` states. Raises ConfigError."""
    if (
        not isinstance(raw, dict)
        or set(raw) - set(NORMS)
        or not all(isinstance(budget, int | float) and not isinstance(budget, bool) for budget in raw.values())
    ):
        raise ConfigError(
            f"every_attack = {raw!r}; wanted a budget for each of the norms {', '.join(NORMS)} that an attack needs "
            "one in, such as { linf = 0.03, l0 = 0.05 }"
        )
    return {norm: float(budget) for norm, budget in raw.items()}


def completed(attacks: Collection[Attack], budgets: Mapping[str, float]) -> tuple[Attack, ...]:
    """Return these attacks and every other of the table, in the table's order. Raises ConfigError.

    Those added have their defaults, and the budget of their norm where they have none by default.
    """
    every: list[Attack] = []
    for name in ATTACKS:
        own = [attack for attack in attacks if attack.name == name]
        every += own or [with_budget(name, budgets)]
    return tuple(every)


def with_budget(name: str, budgets: Mapping[str, float]) -> Attack:
    norm = budget_norm(name)
    if norm is None:
        return build_attack(name, {})
    if norm not in budgets:
        raise ConfigError(
            f"every_attack: attack {name!r} needs a budget in {norm}; state {norm} = ... in every_attack, or give the "
            "attack an [[attack]] block"
        )
    return build_attack(name, {"budget": budgets[norm]})
