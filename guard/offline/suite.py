"""A suite: a further list of attacks to evaluate a guard against, as data that a user can copy."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.recipe import attacks_of, read_text, tables

KEYS = {"description", "attack"}


@dataclass(frozen=True)
class Suite:
    """Attacks that nobody learns from."""

    name: str
    description: str
    attacks: tuple[Attack, ...]


def suites() -> tuple[str, ...]:
    """Names of the suites that come with the guard."""
    folder = files("guard.offline").joinpath("suites")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load_suite(name_or_file: str) -> Suite:
    """A suite by name, or a file of the user's own. Raises ConfigError."""
    if name_or_file in suites():
        text = files("guard.offline").joinpath("suites", f"{name_or_file}.toml").read_text(encoding="utf-8")
    elif name_or_file.endswith(".toml"):
        text = read_text(Path(name_or_file))
    else:
        raise ConfigError(f"unknown suite {name_or_file!r}; there are: {', '.join(suites())}, or name a .toml file")
    try:
        raw: Mapping[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"suite {name_or_file} is not valid TOML: {error}") from error
    if unknown := set(raw) - KEYS:
        raise ConfigError(f"suite {name_or_file}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(KEYS))}")
    attacks = attacks_of(tables(raw, "attack", name_or_file), name_or_file)
    if not attacks:
        raise ConfigError(f"suite {name_or_file} lists no [[attack]]; at least one is needed")
    return Suite(Path(name_or_file).stem, str(raw.get("description", "")), attacks)
