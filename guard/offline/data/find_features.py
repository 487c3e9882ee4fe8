"""Features of a table, found from its values as far as they are not stated.

How it works. Words are categories. Of numbers, 0 and 1 alone are binary, other whole numbers integers, however few they
are: the children of a table that has none with 8 may be 8 elsewhere, so codes are stated, not guessed. What has
decimals is numeric. The step of numbers is the largest of which all values are multiples: 0.5 of the values 1, 2.5 and
4. A column of one value is immutable: there is nothing to learn of what else it might hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guard.columns import bad_value, listed
from guard.data_file import DataFile
from guard.errors import ConfigError, DataError
from guard.feature_values import check_values
from guard.features import BINARY, CATEGORICAL, INTEGER, NUMERIC, STEP_TOLERANCE, Feature, box_of, nearest_of, unnamed
from guard.offline.data.dataset import Dataset

MAX_CODE_VALUES = 10  # different whole numbers that may be codes, as is said
MIN_CATEGORY_ROWS = 5  # of each category: fewer are said to be few
MAX_STATED_CATEGORY_VALUES = 1000  # different numbers of a column that is stated to be of categories
MAX_STEPS = 100_000  # between low and high: finer ones are none
MAX_STEP_FACTOR = 10**6  # a finer step, of so many to one, is none
MAX_ROUNDING_STEPS = 0.02  # of a step, that float32 may round a value by, where a step is looked for


class Said(Protocol):
    """What a user states of a feature; None and () stand for nothing (`job/feature_file.py`)."""

    name: str
    kind: str | None
    immutable: bool
    low: float | None
    high: float | None
    step: float | None
    categories: tuple[str | float, ...]
    cost: float
    group: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]: ...


Range = tuple[float, float]


def find_features(
    examples: DataFile, stated: Sequence[Any] = (), value_range: Range | None = None
) -> tuple[Feature, ...]:
    """Return the features of a table's values [item, feature], in their order.

    `value_range` holds for numbers whose ends are not stated.

    Raises:
        ConfigError: a name that is no column.
        DataError: a value that contradicts what was stated; its row and column are named.
    """
    values = examples.images[:]
    names = examples.features or unnamed(values.shape[1])
    said = by_column(stated, names, examples.source)
    words = examples.words or ((),) * len(names)
    found = tuple(
        Column(values[:, place], name, words[place], said.get(name), value_range, examples.source).feature()
        for place, name in enumerate(names)
    )
    check_values(values, found, examples.source, steps=True)
    return found


def by_column(stated: Sequence[Said], names: Sequence[str], source: str) -> Mapping[str, Said]:
    """Return what was said of each column. Raises ConfigError for a name that is no column."""
    found = {}
    for one in stated:
        for name in one.group or (one.name,):
            if name not in names:
                raise ConfigError(
                    f"--features speaks of {name!r}, which is no feature in {source}; {nearest_of(name, names)}"
                )
            found[name] = one
    return found


@dataclass(frozen=True, eq=False)
class Column:
    """Column of a table with what is known of it."""

    values: NDArray[Any]  # [item]
    name: str
    words: tuple[str, ...]
    said: Said | None
    value_range: Range | None
    source: str

    def feature(self) -> Feature:
        """Return the column as a feature. Raises DataError where what was stated is not so."""
        said = self.said
        found = self.of_group(said) if said is not None and said.group else self.by_kind()
        if said is None:
            return found
        return replace(found, immutable=found.immutable or said.immutable, cost=said.cost)

    def of_group(self, said: Said) -> Feature:
        return Feature(self.name, BINARY, 0.0, 1.0, categories=(0.0, 1.0), group=said.name)

    def by_kind(self) -> Feature:
        kind = self.said.kind if self.said is not None else None
        stated = self.said.categories if self.said is not None else ()
        if self.words:
            return self.of_words(kind, stated)
        if stated and isinstance(stated[0], str):
            raise DataError(
                f"{self.source}: column {self.name!r} holds numbers, and its categories are stated as words "
                f"({listed([str(one) for one in stated])}); state the numbers"
            )
        if stated:
            return self.of_categories([float(one) for one in stated], kind)
        distinct = np.unique(self.values)
        if kind in (CATEGORICAL, BINARY):
            limit = 2 if kind == BINARY else MAX_STATED_CATEGORY_VALUES
            if len(distinct) > limit:
                raise DataError(
                    f"{self.source}: column {self.name!r} is stated to be {kind}, and holds {len(distinct)} different "
                    f"values; wanted at most {limit}"
                )
            return self.of_categories(plain(distinct), kind)
        return self.of_numbers(distinct, kind)

    def of_words(self, kind: str | None, stated: Sequence[str | float]) -> Feature:
        if kind in (NUMERIC, INTEGER) or (stated and not isinstance(stated[0], str)):
            wanted = (
                f"a number, since --features states {f'kind = {kind!r}' if kind else 'categories that are numbers'}"
            )
            raise bad_value(f"{self.source}: row 1", self.name, self.words[int(self.values[0])], wanted)
        codes = tuple(float(code) for code in range(len(self.words)))
        if kind == BINARY and len(codes) > 2:
            raise DataError(
                f"{self.source}: column {self.name!r} is stated to be binary, and holds {len(codes)} different words, "
                f"{listed(self.words)}"
            )
        return replace(self.of_categories(codes, kind), words=self.words)

    def of_categories(self, codes: Sequence[float], kind: str | None) -> Feature:
        """Return a feature of these wire values; of one value alone it is immutable."""
        low, high = min(codes), max(codes)
        name = kind or (BINARY if len(codes) == 2 else CATEGORICAL)
        alone = len(codes) == 1
        return Feature(self.name, name, low, low + 1 if alone else high, categories=tuple(codes), immutable=alone)

    def of_numbers(self, distinct: NDArray[Any], kind: str | None) -> Feature:
        low, high, step = self.ends(distinct)
        free = kind is None and (self.said is None or self.said.low is self.said.high is self.said.step is None)
        whole = bool((distinct == np.rint(distinct)).all())
        if len(distinct) == 1 and low == high:
            return Feature(self.name, kind or NUMERIC, low, low + 1, immutable=True, open_low=True, open_high=True)
        if free and distinct.tolist() == [0, 1]:
            return self.of_categories(plain(distinct), None)
        if kind == INTEGER and not whole:
            row = int(np.argmax(self.values != np.rint(self.values)))
            raise bad_value(f"{self.source}: row {row + 1}", self.name, f"{self.values[row]:g}", "a whole number")
        step = step if step is not None else found_step(distinct, low, high)
        if kind == INTEGER and step is None:
            step = 1.0
        if step is not None:
            high = low + step * self.steps_to(high, low, step)
        open_low, open_high = self.open_ends
        name = kind or (INTEGER if whole else NUMERIC)
        return Feature(self.name, name, low, high, step, open_low=open_low, open_high=open_high)

    def steps_to(self, high: float, low: float, step: float) -> int:
        """Return how many steps lie between low and high: those up to what was stated, or to the nearest value.

        Raises:
            DataError: a step is larger than the range that was stated.
        """
        steps = (high - low) / step
        _, is_open = self.open_ends
        if is_open:
            return max(1, round(steps))
        if steps < 1 - STEP_TOLERANCE:
            raise DataError(
                f"{self.source}: column {self.name!r} is stated to have steps of {step:g}, and goes from {low:g} to "
                f"{high:g}; wanted a step at least: state another low, high or step"
            )
        return math.floor(steps + STEP_TOLERANCE)

    @property
    def open_ends(self) -> tuple[bool, bool]:
        """Whether low and high are what the values have, and not what was stated."""
        if self.value_range is not None:
            return False, False
        return self.said is None or self.said.low is None, self.said is None or self.said.high is None

    def ends(self, distinct: NDArray[Any]) -> tuple[float, float, float | None]:
        """Return low, high and step, each as it was stated, or as the values have it."""
        least, most = plain(distinct[[0, -1]])
        low, high = self.value_range or (least, most)
        said = self.said
        if said is None:
            return low, high, None
        low = said.low if said.low is not None else min(low, said.high) if said.high is not None else low
        return low, said.high if said.high is not None else max(high, low), said.step


def plain(values: NDArray[Any]) -> list[float]:
    """Return float32 values as the shortest decimals that stand for them: 12.34, not 12.34000015."""
    return [float(str(value)) for value in values]


def found_step(distinct: NDArray[Any], low: float, high: float) -> float | None:
    """Return the largest step, a decimal, from `low` through all values to `high`; None where there is none.

    For example 0.5 for the values 1, 2.5 and 4 of a column from 1 to 4.
    """
    values = np.concatenate([[low, high], np.asarray(distinct, dtype=np.float64)])
    largest = float(np.abs(values).max())
    for scale in (float(10**decimals) for decimals in range(round(math.log10(MAX_STEP_FACTOR)) + 1)):
        rounding = largest * scale * float(np.finfo(np.float32).eps)
        if rounding > MAX_ROUNDING_STEPS or (high - low) * scale > MAX_STEPS * MAX_STEPS:
            return None
        scaled = values * scale
        steps = np.rint(scaled)
        if (np.abs(scaled - steps) <= rounding + 1e-9).all():
            common = int(np.gcd.reduce((steps - steps[0]).astype(np.int64)))
            step = common / scale
            return step if common and (high - low) / step <= MAX_STEPS else None
    return None


def perhaps_codes(features: Sequence[Feature], data: Dataset) -> list[str]:
    """Return the names of numbers that are whole and have few values, as codes of categories would."""
    whole = [place for place, feature in enumerate(features) if feature.kind == INTEGER and feature.is_found]
    few = [place for place in whole if len(np.unique(data.images[:][:, place])) <= MAX_CODE_VALUES]
    return [features[place].name for place in few]


def odd_features(features: Sequence[Feature], data: Dataset) -> Iterator[str]:
    """Yield what a user should look at before a training: categories that no item has, or only few."""
    low, high = box_of(features)
    for place, feature in enumerate(features):
        if not feature.is_category or feature.group is not None:
            continue
        wire = low[place] + (high[place] - low[place]) * data.images[:][:, place].astype(np.float64)
        codes = np.asarray(feature.categories)
        counts = np.bincount(np.searchsorted(codes, feature.nearest(wire)), minlength=len(codes))
        for what, which in (("no item has", counts == 0), (f"fewer than {MIN_CATEGORY_ROWS} items have", counts > 0)):
            if rare := [feature.written(float(code)) for code in codes[which & (counts < MIN_CATEGORY_ROWS)]]:
                yield f"{feature.name!r}: {what} {listed(rare)}"
