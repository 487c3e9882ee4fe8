"""Folders and files of tables: which parts belong together, and what is damaged or in several splits is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra [tables]")

from pyarrow import parquet  # noqa: E402

from guard.arrays import read_examples  # noqa: E402
from guard.arrow_files import counted, open_parquet  # noqa: E402
from guard.errors import DataError  # noqa: E402
from tests.arrow_fixtures import save_to_disk  # noqa: E402
from tests.picture_files import save  # noqa: E402

TABLE = pa.table({"a": [1.5, 2, 3, 4], "label": [0, 1, 0, 1]})


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_parts_of_a_table_are_read_in_their_order(tmp_path: Path) -> None:
    for part in (1, 0):
        parquet.write_table(TABLE.slice(2 * part, 2), tmp_path / f"train-0000{part}-of-00002.parquet")
    assert read_examples(tmp_path).images[:, 0].tolist() == [1.5, 2, 3, 4]
    parquet.write_table(TABLE, tmp_path / "test-00000-of-00001.parquet")
    refused(tmp_path, "2 Parquet tables (test, train)", "--test")


def test_parts_with_other_columns_are_refused(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "x-00000-of-00002.parquet")
    parquet.write_table(TABLE.rename_columns(["b", "label"]), tmp_path / "x-00001-of-00002.parquet")
    refused(tmp_path, "x-00001-of-00002.parquet", "['b', 'label']", "one table")


def test_a_table_beside_class_folders_is_refused(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "x.parquet")
    save(tmp_path / "cat" / "a.png", np.zeros((6, 8), dtype=np.uint8))
    refused(tmp_path, "x.parquet", "cat/a.png")


def test_one_split_has_to_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_to_disk(tmp_path / split, TABLE)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    refused(tmp_path, "splits train, test", f"--data {tmp_path / 'train'}", f"--test {tmp_path / 'test'}")
    assert len(read_examples(tmp_path / "train")) == 4


@pytest.mark.parametrize("cut", [0, 100, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_damaged_files_are_named(tmp_path: Path, kind: str, cut: float) -> None:
    large = pa.table({"a": np.random.default_rng(0).random(3000), "label": [0, 1, 2] * 1000})
    if kind == "saved":
        path = save_to_disk(tmp_path / "saved", large)
        file = path / "data-00000-of-00001.arrow"
    else:
        path = file = tmp_path / "x.parquet"
        parquet.write_table(large, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(cut) if cut >= 1 else int(cut * len(content))])
    refused(path, file.name, "cannot be read")


@pytest.mark.parametrize("announced", [3, 5])
def test_other_rows_than_announced_are_refused(tmp_path: Path, announced: int) -> None:
    parquet.write_table(TABLE, tmp_path / "x.parquet")
    batches = counted(open_parquet([tmp_path / "x.parquet"], "x").batches, announced, "x")
    seen = []
    with pytest.raises(DataError, match=f"announces {announced} rows and holds 4"):
        seen.extend(batches(["a"]))
    assert sum(batch.num_rows for batch in seen) <= announced


def test_a_damaged_offset_does_not_end_the_process(tmp_path: Path) -> None:
    """The offsets of texts lead into the file's other bytes; one that leads far beyond them is an error."""
    names = pa.array(["ant", "bee"] * 500)
    folder = save_to_disk(tmp_path / "saved", pa.table({"a": np.arange(1000) / 7, "label": names}))
    file = folder / "data-00000-of-00001.arrow"
    offsets = np.asarray([0, 3, 6, 9], dtype=np.int32).tobytes()
    damaged = np.asarray([0, 3, 2**30, 9], dtype=np.int32).tobytes()
    assert offsets in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(offsets, damaged))
    refused(folder, "data-00000-of-00001.arrow", "cannot be read")


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "saved", TABLE)
    (folder / "data-00000-of-00001.arrow").unlink()
    refused(folder, "data-00000-of-00001.arrow", "cannot be read")
    (folder / "state.json").write_text(json.dumps({"_data_files": []}))
    refused(folder, "state.json", "no data files")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"file": "data-00000-of-00001.arrow"}]}))
    refused(folder, "state.json", "no data files")
    (folder / "state.json").write_text("{")
    refused(folder, "state.json", "cannot be read")
    (folder / "state.json").write_text("[]")
    refused(folder, "state.json", "no JSON object")
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    refused(folder, "indices", "flatten_indices()")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    parquet.write_table(TABLE.slice(0, 0), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "no row")
    refused(save_to_disk(tmp_path / "saved", TABLE.slice(0, 0)), "no row")
