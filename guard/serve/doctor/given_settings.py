"""The settings of `guard doctor`: those of `guard serve`, each fault told by itself, and the rest used all the same.

How it works. `guard serve` stops at the first setting that it cannot read. Here each one is read alone, as from the
same file, variable or flag; what cannot be read is a remark, and the default stands in its place for the checks that
follow.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guard.config import MODELS, ServeConfig, SettingsSource, check, convert, given, known, read_tables
from guard.errors import ConfigError
from guard.model_config import ModelConfig

HINTS = typing.get_type_hints(ServeConfig)


@dataclass(frozen=True)
class GivenSettings:
    """The settings that were given and can be used, and what is wrong with the others."""

    config: ServeConfig
    places: Mapping[str, str]  # the file, variable or flag that gave each
    faults: tuple[str, ...]
    file: Path | None = None  # guard.toml, where there is one

    @staticmethod
    def read(source: SettingsSource) -> GivenSettings:
        """Read every setting of a source by itself."""
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        tables: tuple[str, Any] | None = None
        faults: list[str] = []
        for origin, where, key, value in each_given(source, faults):
            if key == MODELS:
                tables = where, value
                continue
            try:
                known(key, HINTS, origin=origin)
                found = convert(value, HINTS[key], where=where)
                check(ServeConfig(**{key: found}), {key: where})
            except ConfigError as error:
                faults.append(str(error))
                continue
            values[key], places[key] = found, where
        config = ServeConfig(**values)
        if tables is not None:
            config = replace(config, bundle="", models=tuple(readable_tables(*tables, config, faults)))
        if not faults:
            faults += fault_of_the_whole(source)
        return GivenSettings(config, places, tuple(faults), source.file)


def each_given(source: SettingsSource, faults: list[str]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield every setting that was given; a file that cannot be read is one fault."""
    try:
        yield from list(given(source.file, source.environment, source.flags))
    except ConfigError as error:
        faults.append(str(error))
        yield from given(None, source.environment, source.flags)


def readable_tables(where: str, tables: Any, config: ServeConfig, faults: list[str]) -> Iterator[ModelConfig]:
    """Yield the tables of models that can be read, each by itself."""
    for part in [{key: table} for key, table in tables.items()] if isinstance(tables, dict) and tables else [tables]:
        try:
            yield from read_tables(where, part, config)
        except ConfigError as error:
            faults.append(str(error))


def fault_of_the_whole(source: SettingsSource) -> list[str]:
    """List the fault of settings of which each can be read by itself: tables, say, beside a bundle."""
    try:
        source.load()
    except ConfigError as error:
        return [str(error)]
    return []
