"""Features of a table: what each column holds, between which values, in which steps, and whether it may change.

Rule 1: the order of the features is the order of the model's inputs; a table's columns are found by their names.
Rule 2: whole numbers and categories survive the way from the wire to unit space and back exactly: a model may look
their embedding up.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMERIC, INTEGER, CATEGORICAL, BINARY = "numeric", "integer", "categorical", "binary"
KINDS = (NUMERIC, INTEGER, CATEGORICAL, BINARY)
STEP_TOLERANCE = 1e-3  # of a step, that a value may lie beside it
MAX_CHECKED_STEPS = 2**12  # of an integer that an embedding may be looked up by
UNNAMED = "feature {}"  # of a column without a name, by its place


@dataclass(frozen=True)
class Feature:
    """Input of a model of tables: the values that it may take on the wire, and what changing it costs.

    For example hours a week: `Feature("hours", "integer", 1, 99, step=1)`; a trade in words that travels as 0, 1 or 2:
    `Feature("trade", "categorical", 0, 2, categories=(0, 1, 2), words=("farmer", "nurse", "smith"))`.
    """

    name: str
    kind: str  # one of KINDS
    low: float  # wire values
    high: float
    step: float | None = None  # between neighbouring values, from low on; None: no steps, or categories
    immutable: bool = False  # never changed by an attacker, nor by noise
    categories: tuple[float, ...] = ()  # wire values of a categorical or binary feature, ascending
    words: tuple[str, ...] = ()  # how each category is written in a table; none: as its number
    cost: float = 1.0  # of a change across the whole range, or to another category
    group: str | None = None  # the one category that several 0/1 columns tell together: one of them is 1
    open_low: bool = False  # low is only what was found in data: other items may lie below it
    open_high: bool = False
    least: float | None = None  # wire value below which the model fails, as for want of a row to look up; None: none
    most: float | None = None  # and above which

    @property
    def is_category(self) -> bool:
        """Whether the values have no order, so that any other is as far away."""
        return bool(self.categories)

    @property
    def span(self) -> float:
        return self.high - self.low

    @property
    def unit_high(self) -> float:
        """The wire value that is 1 in unit space: `high`, or beyond it where only that keeps whole numbers exact.

        Those that may come from beyond ends that were found count, too.
        """
        values = self.exact_values
        if values is not None and self.open_low | self.open_high:
            values = np.concatenate([values - round(self.span), values, values + round(self.span)])
        if values is None or survives(values, self.low, self.high):
            return self.high
        wide = self.low + 2.0 ** math.ceil(math.log2(self.span))
        return wide if survives(values, self.low, wide) else self.high

    @property
    def exact_values(self) -> NDArray[np.float64] | None:
        """The wire values that must survive unit space: categories, and integers that an embedding may look up."""
        if self.is_category:
            return np.asarray(self.categories, dtype=np.float64)
        if self.kind != INTEGER or self.low != round(self.low) or not 1 <= self.span <= MAX_CHECKED_STEPS:
            return None
        return np.asarray(self.low + np.arange(round(self.span) + 1), dtype=np.float64)

    def nearest(self, wire: NDArray[Any]) -> NDArray[np.float64]:
        """Return the nearest categories or whole steps of wire values [item], which may lie beyond the ends.

        A feature without steps keeps them.
        """
        values = np.asarray(wire, dtype=np.float64)
        if self.is_category:
            codes = np.asarray(self.categories, dtype=np.float64)
            between = (codes[1:] + codes[:-1]) / 2
            return np.asarray(codes[np.searchsorted(between, values)], dtype=np.float64)
        if self.step is None:
            return values
        return np.asarray(self.low + self.step * np.rint((values - self.low) / self.step), dtype=np.float64)

    def written(self, value: float) -> str:
        """Return how a wire value is written in a table."""
        if self.words and value in self.categories:
            return self.words[self.categories.index(value)]
        return f"{value:g}"

    @property
    def is_found(self) -> bool:
        """Whether the numbers are what data happened to hold: others of the kind may come, between and beyond them."""
        return self.open_low and self.open_high

    def beyond_model(self, wire: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which wire values [item] the model cannot take."""
        least, most = (-math.inf if self.least is None else self.least), (math.inf if self.most is None else self.most)
        return np.asarray((wire < least) | (wire > most), dtype=np.bool_)

    @property
    def taken(self) -> str:
        """The values that the model can take, as refusals say it."""
        ends = "" if self.least is None else f" from {self.least:g} on"
        return f"a number{ends}{'' if self.most is None else f' up to {self.most:g}'}, as the model takes it"

    @property
    def wanted(self) -> str:
        """What a value of this feature must be, as refusals say it."""
        if self.is_category:
            every = self.words or tuple(f"{code:g}" for code in self.categories)
            return f"one of its categories, {', '.join(every[:12])}{', …' if every[12:] else ''}"
        ends = "" if self.open_low else f" from {self.low:g} on"
        ends += "" if self.open_high else f" up to {self.high:g}"
        steps = "" if self.step in (None, 1) else f", in steps of {self.step:g} from {self.low:g}"
        return f"a {'whole number' if self.kind == INTEGER else 'number'}{ends}{steps}"


def survives(values: NDArray[np.float64], low: float, high: float) -> bool:
    """Return whether float32 brings wire values through unit space and back without a change."""
    least, span = np.float32(low), np.float32(high) - np.float32(low)
    wire = values.astype(np.float32)
    return bool((((wire - least) / span) * span + least == wire).all())


def only_names(features: Sequence[Feature]) -> bool:
    """Return whether features say nothing of their values but the range that all numbers of the model have."""
    plain = (Feature(f.name, NUMERIC, f.low, f.high) for f in features)
    return all(feature == named for feature, named in zip(features, plain, strict=True))


def box_of(features: Sequence[Feature]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the wire values that are 0 and 1 in unit space, a feature."""
    return tuple(f.low for f in features), tuple(f.unit_high for f in features)


def unnamed(count: int) -> tuple[str, ...]:
    """Return names for columns that have none."""
    return tuple(UNNAMED.format(place) for place in range(count))


def names_of(features: Sequence[Feature]) -> tuple[str, ...]:
    """Return the names of the columns that a table must have; none where the features were never named."""
    names = tuple(feature.name for feature in features)
    return () if names == unnamed(len(names)) else names


def groups_of(features: Sequence[Feature]) -> dict[str, list[int]]:
    """Return the columns of each one-hot group, by the category that they tell together."""
    places = sorted((f.group, place) for place, f in enumerate(features) if f.group is not None)
    return {str(name): [place for _, place in members] for name, members in groupby(places, key=lambda one: one[0])}


def features_from(raw: Iterable[Mapping[str, Any]]) -> tuple[Feature, ...]:
    """Read features as a manifest holds them. Raises TypeError, ValueError or KeyError where they are none."""
    known = {field.name for field in fields(Feature)}
    found = []
    for entry in raw:
        values = {name: value for name, value in entry.items() if name in known}
        categories = tuple(float(code) for code in values.pop("categories", ()))
        words = tuple(str(word) for word in values.pop("words", ()))
        feature = Feature(**values, categories=categories, words=words)
        if feature.kind not in KINDS or not feature.low < feature.high or (words and len(words) != len(categories)):
            raise ValueError(f"{entry!r} is no feature")
        found.append(feature)
    return tuple(found)


def near_to(word: str, known: Iterable[str]) -> str:
    """Say which known word was meant; nothing where none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def nearest_of(word: str, known: Iterable[str]) -> str:
    """Say which known word was meant, or which there are."""
    every = list(known)
    if meant := near_to(word, every):
        return meant
    return f"known: {', '.join(map(repr, every[:12]))}{', …' if every[12:] else ''}"
