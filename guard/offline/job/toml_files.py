"""Reads TOML files, recipes and suites, that come with the guard or are a user's own."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from guard.errors import ConfigError


def names_in(folder: str) -> tuple[str, ...]:
    """Return the names of the files that come with the guard in a folder, without their ending."""
    names = (file.name for file in files("guard.offline.job").joinpath(folder).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def own_text(folder: str, name: str) -> str:
    """Return the text of a file that comes with the guard."""
    return files("guard.offline.job").joinpath(folder, f"{name}.toml").read_text(encoding="utf-8")


def users_text(kind: str, file: Path) -> str:
    """Return the text of a user's file. Raises ConfigError where it cannot be read; `kind` says what it was to be."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {file} cannot be read: {error}") from error


def content_of(kind: str, origin: str, text: str) -> dict[str, Any]:
    """Parse the text of a TOML file. Raises ConfigError where it is not valid TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib raises them bare for huge numbers and for deep nesting
        raise ConfigError(f"{kind} {origin} is not valid TOML: {error}") from error
