"""A preparation is made once, by whichever process comes first, and never handed over by halves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.once import once

PROCESS = """
import sys, time
from pathlib import Path
from tests.once import once

class Factory:
    def getbasetemp(self):
        return Path(sys.argv[1])

def make(folder):
    (folder / "first").touch()
    with (folder.parent / "calls").open("a") as calls:
        calls.write("made\\n")
    time.sleep(0.05)
    (folder / "last").touch()

folder = once(Factory(), "thing", make)
print(sorted(path.name for path in folder.iterdir()))
"""


class Factory:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def getbasetemp(self) -> Path:
        return self.folder


def factory(folder: Path) -> pytest.TempPathFactory:
    made: pytest.TempPathFactory = Factory(folder)  # type: ignore[assignment]
    return made


def test_processes_that_come_at_once_share_one(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    workers = [tmp_path / name for name in ("gw0", "gw1", "gw2")]
    for worker in workers:
        worker.mkdir()
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(worker)], cwd=root, stdout=subprocess.PIPE, text=True)
        for worker in workers
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert said == ["['first', 'last']"] * 3
    assert (tmp_path / "shared" / "calls").read_text() == "made\n"


def test_one_that_failed_is_made_anew_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        once(factory(tmp_path), "thing", fails)
    folder = once(factory(tmp_path), "thing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert once(factory(tmp_path), "thing", fails) == folder
