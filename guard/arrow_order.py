"""The order that a table declares for the words of a column, as `small, medium, large`.

How it works. An Arrow dictionary that is declared to be in order lists a column's words once. Parquet keeps that list
only where the column is dictionary-encoded; of another column, a reader makes a list of its own, in the order in which
words appear, and calls it ordered too. Such a list is no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from guard.arrow_values import TEXT, kind_of, plain
from guard.errors import DataError

Batches = Callable[[Sequence[str]], Iterator[Any]]


def is_ordered(arrow: Any) -> bool:
    """Tell whether an Arrow type is of words that are declared to be in order."""
    from pyarrow import types

    arrow = plain(arrow)
    return bool(types.is_dictionary(arrow) and arrow.ordered and kind_of(arrow) == TEXT)


def declared_order(batches: Batches, name: str, source: str, remedy: str, *, is_kept: bool) -> tuple[str, ...]:
    """Return the words of a column that is declared to be in order, which lies in the file itself where it `is_kept`.

    Raises:
        DataError: the order is not in the file, or its parts have different ones.
    """
    if not is_kept:
        raise DataError(
            f"{source}: column {name!r} is declared to be in order, and the file does not hold that order, since the "
            f"column is not dictionary-encoded; write it so (pyarrow: use_dictionary=[{name!r}]), or {remedy}"
        )
    found = sorted(dictionaries(batches, name), key=len)
    longest = found[-1] if found else ()
    for words in found[:-1]:
        if [word for word in longest if word in words] != list(words):
            raise DataError(
                f"{source}: column {name!r} is declared to be in order, and its parts have different ones, "
                f"{', '.join(words[:6])} and {', '.join(longest[:6])}; write it with one, or {remedy}"
            )
    return longest


def dictionaries(batches: Batches, name: str) -> set[tuple[str, ...]]:
    """Return the different lists of words of a column's batches, without what stands around each word."""
    found, last = set(), None
    for batch in batches([name]):
        column = batch.column(0)
        words = getattr(column, "storage", column).dictionary
        if last is None or not words.equals(last):
            stripped = (word.strip() for word in words.to_pylist() if word is not None)
            found.add(tuple(dict.fromkeys(word for word in stripped if word)))
            last = words
    return found
