"""A suite: attacks that a bundle is evaluated against, as data that a user can copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.job.recipe import attacks_of, tables
from guard.offline.job.toml_files import content_of, names_in, own_text, users_text

KEYS = {"description", "attack"}


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
    except ConfigError as error:
        raise ConfigError(f"suite {origin}: {error}") from error
    if not attacks:
        raise ConfigError(f"suite {origin} lists no [[attack]]; at least one is needed")
    calls = [repr(attack) for attack in attacks]
    if twice := [call for call in calls if calls.count(call) > 1]:
        raise ConfigError(f"suite {origin}: {twice[0]} is listed twice; once is all that can be told apart")
    return Suite(Path(origin).stem, str(raw.get("description", "")), attacks)
