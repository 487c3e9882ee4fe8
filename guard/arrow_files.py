"""Parquet files, folders of their parts, and data sets as Hugging Face's `save_to_disk` writes them, by pyarrow alone.

How a saved data set lies in its folder: `dataset_info.json` describes the columns, `state.json` lists the files
`data-00000-of-00001.arrow`, which are Arrow streams. A folder of several splits has a `dataset_dict.json` that names
them, and a folder each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from guard.arrow_rows import RowGroups
from guard.arrow_table import ArrowTable
from guard.errors import DataError, first_line

PARQUET = (".parquet", ".pq")
SAVED, SPLITS, DESCRIPTION = "state.json", "dataset_dict.json", "dataset_info.json"
BATCH_ROWS = 256
ARROW_WRITER = "parquet-cpp"  # how the writers in C++ name themselves in a file
PART_OF = re.compile(r"-\d{5}-of-\d{5}$")


def is_saved_dataset(folder: Path) -> bool:
    """Tell whether `save_to_disk` has written a folder."""
    return (folder / SAVED).is_file() or (folder / SPLITS).is_file()


def parquet_parts(folder: Path) -> list[Path]:
    """Return a folder's Parquet files in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PARQUET and file.name[:1] != ".")


def open_parquet_folder(folder: Path) -> ArrowTable:
    """Open the parts of one table, `train-00000-of-00002.parquet`. Raises DataError where there are several tables."""
    files = parquet_parts(folder)
    tables = sorted({PART_OF.sub("", file.stem) for file in files})
    if len(tables) > 1:
        raise DataError(
            f"{folder} holds {len(tables)} Parquet tables ({', '.join(tables[:12])}); wanted one: name one file as "
            "--data and, of training, another as --test, or put the parts of one into a folder of their own"
        )
    return open_parquet(files, str(folder))


def open_parquet(files: Sequence[Path], source: str) -> ArrowTable:
    """Open Parquet files as one table. Raises DataError where one is damaged, or they have different columns."""
    from pyarrow import parquet

    opened = [guarded(file, parquet.ParquetFile, file) for file in files]
    schema = same_schema([(file, one.schema_arrow) for file, one in zip(files, opened, strict=True)])

    rows = sum(one.metadata.num_rows for one in opened)

    def every(names: Sequence[str]) -> Iterator[Any]:
        for file, one in zip(files, opened, strict=True):
            yield from in_order(file, one.iter_batches(batch_size=BATCH_ROWS, columns=list(names)), names)

    groups = parquet_groups(files, opened, source)
    batches, names = counted(every, rows, source), class_names(described(schema))
    return ArrowTable(source, schema, rows, batches, groups, names, partial(keeps_order, opened))


def keeps_order(opened: Sequence[Any], name: str) -> bool:
    """Tell whether all row groups of opened Parquet files hold a column's dictionary as Arrow's own writer puts it.

    Other writers list words in the order in which they appear.
    """
    if not all(one.metadata.created_by.startswith(ARROW_WRITER) for one in opened):
        return False
    groups = [one.metadata.row_group(group) for one in opened for group in range(one.num_row_groups)]
    chunks = [group.column(place) for group in groups if group.num_rows for place in range(group.num_columns)]
    return all(chunk.has_dictionary_page for chunk in chunks if chunk.path_in_schema == name)


def parquet_groups(files: Sequence[Path], opened: Sequence[Any], source: str) -> RowGroups:
    """Return the row groups of opened Parquet files."""
    every = [(file, one, group) for file, one in zip(files, opened, strict=True) for group in range(one.num_row_groups)]
    sizes = [one.metadata.row_group(group).num_rows for _, one, group in every]

    def load(number: int, name: str) -> Any:
        file, one, group = every[number]
        table = guarded(file, one.read_row_group, group, columns=[name])
        guarded(file, table.validate, full=True)
        return table.column(0).combine_chunks()

    def size_bytes(name: str) -> int:
        found = [0]
        for _, one, group in every:
            columns = [one.metadata.row_group(group).column(place) for place in range(one.metadata.num_columns)]
            own = [column for column in columns if column.path_in_schema.split(".")[0] == name]
            found.append(sum(column.total_uncompressed_size for column in own))
        return max(found)

    return RowGroups(source, tuple(files), np.cumsum(sizes, dtype=np.int64), load, size_bytes)


def open_saved_dataset(folder: Path) -> ArrowTable:
    """Open a folder that `save_to_disk` has written. Raises DataError where it holds several splits, or is damaged."""
    import pyarrow

    if (folder / SPLITS).is_file():
        splits = [str(name) for name in read_json(folder / SPLITS).get("splits") or ()]
        example = splits[0] if splits else "NAME"
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}; wanted one: --data {folder / example}"
            + (f" and, of training, --test {folder / splits[1]}" if splits[1:] else "")
        )
    state, info = read_json(folder / SAVED), read_json(folder / DESCRIPTION)
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} holds a selection of rows (indices); wanted all: flatten_indices() before saving")
    files = data_files(folder, state)
    if not files:
        raise DataError(f"{folder / SAVED} lists no data files; wanted what save_to_disk writes")

    def stream(file: Path) -> Any:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))

    def every(names: Sequence[str]) -> Iterator[Any]:
        for file in files:
            yield from in_order(file, small_batches(guarded(file, stream, file)), names)

    schema = same_schema([(file, guarded(file, stream, file).schema) for file in files])
    rows = sum(batch.num_rows for file in files for batch in guarded(file, list, guarded(file, stream, file)))
    declared = info.get("features")
    features = declared if declared and isinstance(declared, dict) else described(schema)
    groups = stream_groups(files, stream, str(folder))
    return ArrowTable(str(folder), schema, rows, counted(every, rows, str(folder)), groups, class_names(features))


def stream_groups(files: Sequence[Path], stream: Callable[[Path], Any], source: str) -> RowGroups:
    """Return the record batches of Arrow streams, which are mapped, as row groups."""
    every = [(file, batch) for file in files for batch in guarded(file, list, guarded(file, stream, file))]
    every = [(file, batch) for file, batch in every if batch.num_rows]

    def load(number: int, name: str) -> Any:
        file, batch = every[number]
        guarded(file, batch.select([name]).validate, full=True)
        return batch.column(name)

    ends = np.cumsum([batch.num_rows for _, batch in every], dtype=np.int64)
    return RowGroups(source, tuple(files), ends, load, lambda _: 0)  # what is mapped takes no memory of its own


def counted(
    every: Callable[[Sequence[str]], Iterator[Any]], rows: int, source: str
) -> Callable[[Sequence[str]], Iterator[Any]]:
    """Return batches that are checked to be as many rows as were announced; a DataError where they are not."""

    def batches(names: Sequence[str]) -> Iterator[Any]:
        seen = 0
        for batch in every(names):
            seen += batch.num_rows
            if seen <= rows:
                yield batch
        if seen != rows:
            raise DataError(f"{source} is damaged: it announces {rows} rows and holds {seen}; write it again")

    return batches


def data_files(folder: Path, state: Mapping[str, Any]) -> list[Path]:
    """Return the files that a data set's state lists, all of them in its folder; none where the state is damaged."""
    try:
        return [folder / Path(one["filename"]).name for one in state["_data_files"]]
    except (KeyError, TypeError):
        return []


def small_batches(stream: Iterator[Any]) -> Iterator[Any]:
    """Cut the record batches of a stream into small ones, which look into them."""
    for batch in stream:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def in_order(file: Path, batches: Iterator[Any], names: Sequence[str]) -> Iterator[Any]:
    """Yield batches that hold rows, their columns in an order. Raises DataError where a file is damaged."""
    remaining = iter(batches)
    while (batch := guarded(file, next, remaining, None)) is not None:
        if batch.num_rows:
            chosen = batch.select(list(names))
            guarded(
                file, chosen.validate, full=True
            )  # a damaged offset would lead out of the file, and end the process
            yield chosen


def guarded(file: Path, act: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Do what reads a file. Raises DataError where that fails."""
    import pyarrow

    try:
        return act(*arguments, **settings)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def same_schema(schemas: Sequence[tuple[Path, Any]]) -> Any:
    """Return the columns that all files have. Raises DataError where one differs."""
    first, wanted = schemas[0]
    guarded(first, attrgetter("names"), wanted)  # which may be no UTF-8
    for file, schema in schemas[1:]:
        if not schema.equals(wanted):
            raise DataError(
                f"{file} has columns {schema.names} of other names or types than {first.name} ({wanted.names}); wanted "
                "parts of one table"
            )
    return wanted


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one. Raises DataError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is no JSON object; wanted what save_to_disk writes")
    return found


def described(schema: Any) -> Mapping[str, Any]:
    """Return the description of columns that Hugging Face's tools put into a table's own schema, or an empty one."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes by number, of each column that declares some."""
    return {
        name: tuple(map(str, kind["names"]))
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }
