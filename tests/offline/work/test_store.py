"""What long work keeps: whole or not there, found again by its key alone, and all of it in one place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from guard.errors import BundleError
from guard.offline.work.directory import LAYOUT_VERSION, WorkDirectory
from guard.offline.work.files import read_arrays, read_json, write_arrays, write_bytes, write_file, write_json
from guard.offline.work.store import ResultStore, cache_key


class Made:
    """Makes numbered results and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def arrays(self) -> dict[str, np.ndarray]:
        self.count += 1
        return {"number": np.asarray(self.count), "more": np.arange(3)}

    def choice(self) -> dict[str, int]:
        self.count += 1
        return {"items": self.count}


def test_a_result_is_made_once_a_key(tmp_path: Path) -> None:
    store, made = ResultStore(tmp_path / "new"), Made()
    keys = [cache_key(given, ("math",)) for given in ("one", "two", "one")]
    numbers = [int(store.arrays("result", key, made.arrays)["number"]) for key in keys]
    assert numbers == [1, 2, 1]
    assert [store.choice("size", key, made.choice)["items"] for key in keys] == [3, 4, 3]
    assert int(store.arrays("result", keys[0], made.arrays, anew=True)["number"]) == 5
    assert int(store.arrays("result", keys[0], made.arrays)["number"]) == 5
    assert len(list(store.folder.iterdir())) == 4


def test_the_key_follows_from_the_code() -> None:
    one, other = (cache_key("given", (f"guard.offline.attacks.methods.{name}",)) for name in ("pgd", "fgsm"))
    assert one != other


@pytest.mark.parametrize("damage", [b"", b"PK", b"{", b"nothing of ours"])
def test_what_cannot_be_read_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    store, made = ResultStore(tmp_path), Made()
    store.arrays("result", "key", made.arrays)
    store.choice("size", "key", made.choice)
    for file in tmp_path.iterdir():
        file.write_bytes(damage)
    assert int(store.arrays("result", "key", made.arrays)["number"]) == 3
    assert store.choice("size", "key", made.choice) == {"items": 4}


def test_a_file_without_a_wanted_array_counts_as_not_there(tmp_path: Path) -> None:
    store, made = ResultStore(tmp_path), Made()
    store.arrays("result", "key", made.arrays)
    assert int(store.arrays("result", "key", made.arrays, names=["number", "more"])["number"]) == 1
    write_arrays(store.file("result", "key", ".npz"), {"number": np.asarray(9)})
    assert int(store.arrays("result", "key", made.arrays, names=["number", "more"])["number"]) == 2


def test_a_write_that_ends_early_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file.json"
    write_json(file, {"a": 1})

    def interrupted(stream: object) -> None:
        stream.write(b'{"a": ')  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(file, interrupted)
    assert read_json(file) == {"a": 1}
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]
    write_bytes(file, b"[2]")
    assert read_json(file) == [2]
    assert read_json(tmp_path / "none") is None
    assert read_arrays(tmp_path / "none") is None


def test_an_empty_directory_is_begun_and_one_of_this_layout_is_taken_up(tmp_path: Path) -> None:
    work = WorkDirectory.beside(tmp_path / "bundle")
    assert work.path == tmp_path / "bundle.work"
    for _ in range(2):
        work.begin()
        work.check()
    assert json.loads(work.layout.read_text()) == {"layout": LAYOUT_VERSION}


@pytest.mark.parametrize("content", [None, '{"layout": 1}', '{"layout": 3}', "[]", "nonsense"])
def test_a_directory_of_another_layout_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    work = WorkDirectory(tmp_path / "bundle.work")
    write_json(work.job, {})
    if content is not None:
        work.layout.write_text(content)
    before = {path: path.read_bytes() for path in work.path.iterdir()}
    for act in (work.begin, work.check):
        with pytest.raises(BundleError, match=r"bundle\.work was written by another version .*; remove it") as refused:
            act()
        assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in work.path.iterdir()} == before
