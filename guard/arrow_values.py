"""Values of Arrow columns as numpy arrays; what is missing, ragged or of another kind is named by row and column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.columns import bad_value
from guard.errors import DataError

NUMBER, VECTOR, ARRAY, PICTURE, TEXT, OTHER = "number", "vector", "array", "picture", "text", "other"
BYTES = "bytes"  # the field of a struct that holds a picture file, beside its path


def kind_of(arrow: Any) -> str:
    """Return which kind of values an Arrow type holds."""
    from pyarrow import types

    arrow = plain(arrow)
    if types.is_dictionary(arrow):
        return kind_of(arrow.value_type)
    if types.is_integer(arrow) or types.is_floating(arrow) or types.is_boolean(arrow) or types.is_decimal(arrow):
        return NUMBER
    if is_list(arrow):
        below = kind_of(arrow.value_type)
        return {NUMBER: VECTOR, VECTOR: ARRAY, ARRAY: ARRAY}.get(below, OTHER)
    if (types.is_struct(arrow) and arrow.get_field_index(BYTES) >= 0) or is_bytes(arrow):
        return PICTURE
    return TEXT if types.is_string(arrow) or types.is_large_string(arrow) or types.is_string_view(arrow) else OTHER


def plain(arrow: Any) -> Any:
    """Return the type in which an extension type is stored, or a type as it is."""
    return getattr(arrow, "storage_type", arrow)


def stored(column: Any) -> Any:
    """Return a column in plain types: without extension and dictionary."""
    from pyarrow import types

    column = getattr(column, "storage", column)
    return column.dictionary_decode() if types.is_dictionary(column.type) else column


def is_list(arrow: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow))


def is_bytes(arrow: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(arrow) or types.is_large_binary(arrow) or types.is_binary_view(arrow))


def check_present(column: Any, source: str, name: str, row: int, wanted: str, *, cells: int = 1) -> None:
    """Raise DataError for a null; a row has so many `cells`, and the first row of the column is `row`."""
    if column.null_count:
        first = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // cells
        raise DataError(
            f"{source}: row {row + first}, column {name!r}: the value is missing (null); wanted {wanted}: fill it in "
            "as the model was trained, or leave the row out"
        )


def numbers_of(column: Any, source: str, name: str, row: int) -> NDArray[np.float64]:
    """Return a column of numbers. Raises DataError for a null; NaN and infinity stay."""
    column = stored(column)
    check_present(column, source, name, row, "a number")
    return leaf(column).astype(np.float64)


def leaf(column: Any) -> NDArray[Any]:
    """Return a column of numbers without nulls in its own type; decimals as float64."""
    import pyarrow

    if pyarrow.types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def nested(column: Any, source: str, name: str, row: int, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Return a column of lists as an array [row, ...], each item of a shape where one is known.

    Raises:
        DataError: a null, or lists of different lengths.
    """
    from pyarrow import compute

    column, sizes = stored(column), [len(column)]
    cells = 1
    while is_list(column.type):
        check_present(column, source, name, row, "a list of numbers", cells=cells)
        lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
        wanted = shape[len(sizes) - 1] if shape is not None else int(lengths[0]) if len(lengths) else 0
        if (lengths != wanted).any():
            odd = int(np.argmax(lengths != wanted))
            raise bad_value(
                f"{source}: row {row + odd // cells}",
                name,
                f"a list of {lengths[odd]}",
                f"{wanted}, as in the first row",
            )
        sizes.append(wanted)
        cells *= max(1, wanted)
        column = stored(column.flatten())
    check_present(column, source, name, row, "a number", cells=cells)
    return leaf(column).reshape(sizes)


def picture_bytes(column: Any, source: str, name: str, row: int) -> Iterator[bytes]:
    """Yield the picture files of a column, whose first row is `row`. Raises DataError where one is not there."""
    from pyarrow import types

    column = stored(column)
    paths = None
    if types.is_struct(column.type):
        paths = column.field("path") if column.type.get_field_index("path") >= 0 else None
        column = column.field(BYTES)
    for item in range(len(column)):
        content = column[item].as_py()
        if content is None:
            path = None if paths is None else paths[item].as_py()
            seen = f"only the path {path!r}" if path else "nothing"
            raise DataError(
                f"{source}: row {row + item}, column {name!r} holds {seen}; wanted the bytes of a picture file: embed "
                "them, or leave the row out"
            )
        yield content
