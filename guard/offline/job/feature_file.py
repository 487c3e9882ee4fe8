"""File of features: what is stated of a table's columns, as [[feature]] blocks of TOML.

For example:

    [[feature]]
    name = "age"
    immutable = true

    [[feature]]
    name = "trade"
    kind = "categorical"
    categories = ["farmer", "nurse", "smith"]   # in the order of the codes 0, 1, 2

    [[feature]]
    name = "colour"
    group = ["red", "green"]                    # two columns, of which one is 1

Rule 1: what is not said is found in the data; what is said and does not fit is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from guard.errors import ConfigError
from guard.features import BINARY, CATEGORICAL, INTEGER, KINDS, NUMERIC, nearest_of
from guard.offline.job.toml_files import content_of, users_text

Category = str | float


@dataclass(frozen=True)
class Stated:
    """Block [[feature]] of the file; None and () stand for what was not said."""

    name: str
    kind: str | None = None
    immutable: bool = False
    low: float | None = None  # wire values
    high: float | None = None
    step: float | None = None
    categories: tuple[Category, ...] = ()  # words, whose codes are their places, or the wire values themselves
    cost: float = 1.0
    group: tuple[str, ...] = ()  # columns of 0 and 1 that tell one category together

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the categories, in the order of their codes; none where the categories are numbers."""
        return tuple(one for one in self.categories if isinstance(one, str))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the block speaks of."""
        return self.group or (self.name,)


def load_features(file: Path | None) -> tuple[Stated, ...]:
    """Read a features file; nothing is stated where there is none. Raises ConfigError, which names block and key."""
    if file is None:
        return ()
    raw = content_of("features", str(file), users_text("features", file))
    origin = f"features {file}"
    if unknown := sorted(set(raw) - {"feature"}):
        raise ConfigError(f"{origin}: unknown key {unknown[0]!r}; wanted [[feature]] blocks alone")
    blocks = raw.get("feature", [])
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ConfigError(
            f"{origin} holds no [[feature]] block; wanted one a feature of which there is something to say"
        )
    found = tuple(stated(block, f"{origin}, block {number}") for number, block in enumerate(blocks, 1))
    every = Counter(name for one in found for name in one.columns)
    every.update({one.name for one in found if one.group and one.name not in one.group})
    if twice := [name for name, times in every.items() if times > 1]:
        raise ConfigError(f"{origin}: {twice[0]!r} stands in {every[twice[0]]} places; wanted one block a feature")
    return found


def restored(raw: Sequence[Mapping[str, Any]]) -> tuple[Stated, ...]:
    """Return what was stated, as the work directory keeps it."""
    lists = ("categories", "group")
    return tuple(Stated(**{**entry, **{name: tuple(entry[name]) for name in lists}}) for entry in raw)


def stated(block: Mapping[str, Any], where: str) -> Stated:
    """Check one block. Raises ConfigError."""
    known = [field.name for field in fields(Stated)]
    name = block.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: name = {name!r}; wanted the name of a column, in quotes")
    where = f"{where} ({name!r})"
    for key in block:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest_of(key, known)}")
    kind = block.get("kind")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{where}: kind = {kind!r}; {nearest_of(str(kind), KINDS)}")
    immutable = block.get("immutable", False)
    if not isinstance(immutable, bool):
        raise ConfigError(f"{where}: immutable = {immutable!r}; wanted true or false")
    numbers = {key: number_of(block, key, where) for key in ("low", "high", "step", "cost")}
    cost = numbers.pop("cost")
    found = Stated(
        name,
        kind,
        immutable,
        **numbers,
        categories=categories_of(block, where),
        cost=1.0 if cost is None else cost,
        group=group_of(block, where),
    )
    check_together(found, where)
    return found


def number_of(block: Mapping[str, Any], key: str, where: str) -> float | None:
    if key not in block:
        return None
    value = block[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key} = {value!r}; wanted a finite number")
    if key in ("step", "cost") and value <= 0:
        remedy = "; what never changes is immutable = true" if key == "cost" else ""
        raise ConfigError(f"{where}: {key} = {value!r}; wanted a number above zero{remedy}")
    return float(value)


def categories_of(block: Mapping[str, Any], where: str) -> tuple[Category, ...]:
    if "categories" not in block:
        return ()
    every = block["categories"]
    words = isinstance(every, list) and all(isinstance(one, str) and one.strip() for one in every)
    numbers = isinstance(every, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in every
    )
    if not (words or numbers) or len(every) < 2:
        raise ConfigError(f"{where}: categories = {every!r}; wanted a list of two or more words, or of their numbers")
    found: list[Category] = [one.strip() if isinstance(one, str) else float(one) for one in every]
    if twice := [one for one, times in Counter(found).items() if times > 1]:
        raise ConfigError(f"{where}: the category {twice[0]!r} stands there twice; wanted each once")
    return tuple(found) if words else tuple(sorted(found, key=float))


def group_of(block: Mapping[str, Any], where: str) -> tuple[str, ...]:
    group = block.get("group", [])
    names = isinstance(group, list) and all(isinstance(one, str) and one for one in group)
    if "group" in block and (not names or len(set(group)) < 2 or len(set(group)) < len(group)):
        raise ConfigError(f"{where}: group = {group!r}; wanted the names of two or more different columns of 0 and 1")
    return tuple(group)


def check_together(found: Stated, where: str) -> None:
    """Check that the settings of a block go together. Raises ConfigError."""
    ordered = [key for key in ("low", "high", "step") if getattr(found, key) is not None]
    if found.group and (ordered or found.categories or found.kind not in (None, CATEGORICAL)):
        said = (*ordered, *(["categories"] if found.categories else []), "kind")[0]
        raise ConfigError(f"{where}: {said} beside group; the columns of a group hold 0 and 1, and are one category")
    if found.categories and found.kind in (NUMERIC, INTEGER):
        raise ConfigError(f"{where}: categories beside kind = {found.kind!r}; wanted kind = 'categorical', or neither")
    if found.kind == BINARY and len(found.categories) > 2:
        raise ConfigError(f"{where}: {len(found.categories)} categories of a binary feature; wanted two")
    if ordered and (found.categories or found.kind in (CATEGORICAL, BINARY)):
        raise ConfigError(
            f"{where}: {ordered[0]} of categories, which have no order; wanted their list, or leave it out"
        )
    if found.low is not None and found.high is not None and found.low >= found.high:
        raise ConfigError(f"{where}: low = {found.low:g} and high = {found.high:g}; the first must be below the second")
    if found.kind == INTEGER:
        for key in ordered:
            if getattr(found, key) != round(getattr(found, key)):
                raise ConfigError(f"{where}: {key} = {getattr(found, key):g} of an integer; wanted a whole number")
    if found.step is not None and found.low is not None and found.high is not None:
        steps = (found.high - found.low) / found.step
        if abs(steps - round(steps)) > 1e-6 * max(steps, 1) or steps < 1:
            raise ConfigError(
                f"{where}: from {found.low:g} to {found.high:g} are {steps:g} steps of {found.step:g}; wanted a whole "
                "number of steps"
            )
