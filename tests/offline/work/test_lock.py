"""A work directory is written by one run at a time, and is free once its holder is gone, however it went."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guard.errors import BundleError
from guard.offline.work import lock
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.lock import locked

HOLDER = """
import sys
from pathlib import Path
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.lock import locked
with locked(WorkDirectory(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def work(tmp_path: Path) -> WorkDirectory:
    return WorkDirectory(tmp_path / "bundle.work")


def test_a_second_run_is_refused_in_one_line_that_says_who_holds_it(work: WorkDirectory) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(work.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = (
            rf"bundle\.work is in use by process {holder.pid} on \S+ .*; wait until it ends, end it .*, or name another"
        )
        for _ in range(2):
            with pytest.raises(BundleError, match=words) as refused, locked(work):
                pytest.fail("two hold it")
            assert "\n" not in str(refused.value)
        assert work.lock.exists(), "who was refused leaves the holder's file alone"
        holder.kill()
        holder.wait()
    assert work.lock.exists()
    with locked(work):  # what was killed holds nothing
        pass
    assert not work.path.exists() or not work.lock.exists()


def test_threads_of_one_process_exclude_each_other_too(work: WorkDirectory) -> None:
    with locked(work), pytest.raises(BundleError, match="in use by process"), locked(work):
        pytest.fail("two hold it")
    with locked(work):
        assert work.lock.exists()


def test_a_run_that_writes_nothing_leaves_nothing(work: WorkDirectory) -> None:
    with pytest.raises(KeyboardInterrupt), locked(work):
        raise KeyboardInterrupt
    assert not work.path.exists()


def test_a_directory_is_begun_under_the_lock_and_stays_without_it(work: WorkDirectory) -> None:
    with locked(work):
        work.begin()
        work.check()
    assert [file.name for file in work.path.iterdir()] == ["layout.json"]


def test_a_lock_that_its_holder_removed_meanwhile_is_not_taken_for_held(
    work: WorkDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a file's opening and its locking the holder ends, and removes it: a third run would lock another file."""
    asked: list[bool] = []
    look = lock.is_at

    def removed_once(path: Path, stream: object) -> bool:
        if not asked:
            path.unlink()
        asked.append(look(path, stream))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(lock, "is_at", removed_once)
    with locked(work), pytest.raises(BundleError, match="in use"), locked(work):
        pytest.fail("two hold it")
    assert asked == [False, True]


def test_a_file_system_without_locks_is_named(work: WorkDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    words = r"file system without locks \(Operation not supported\).* --out on another"
    with pytest.raises(BundleError, match=words), locked(work):
        pytest.fail("held without a lock")
