"""What `make` does on a machine that has nothing yet, as `make --dry-run` prints it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETER = "python3 -m venv .venv"
INSTALLED = ".venv/bin/python -m pip install --quiet --editable"
SIDE = ".venv/bin/python -m tests.side"


@pytest.fixture
def fresh(root: Path, tmp_path: Path) -> Path:
    """A folder with the Makefile and what it reads, where nothing has been made."""
    (tmp_path / "tests").mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As typed: the `make test` that may run this test passes its own flags on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def steps(folder: Path, *words: str) -> str:
    """The commands of a run, in their order."""
    done = make(folder, "--dry-run", *words, "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [
        ("test", (INTERPRETER, INSTALLED, SIDE, ".venv/bin/python -m pytest")),
        ("demo", (INTERPRETER, INSTALLED, ".venv/bin/guard demo")),
        ("quick", (INTERPRETER, INSTALLED, ".venv/bin/python -m pytest")),
        ("readme", (INTERPRETER, INSTALLED, ".venv/bin/python -m pytest")),
        ("lint", (INTERPRETER, INSTALLED, ".venv/bin/mypy")),
        ("side", (INTERPRETER, SIDE)),
    ],
)
def test_a_goal_typed_alone_makes_all_that_it_needs(fresh: Path, goal: str, wanted: tuple[str, ...]) -> None:
    printed = steps(fresh, goal)
    places = [printed.find(step) for step in wanted]
    assert -1 not in places, printed
    assert places == sorted(places), printed
    assert (INSTALLED in printed) == (INSTALLED in wanted), printed


def test_side_environments_wait_for_the_interpreter_alone(fresh: Path) -> None:
    """So that .ci/run builds them beside the main one."""
    (fresh / ".venv/bin").mkdir(parents=True)
    (fresh / ".venv/bin/python").touch()
    assert steps(fresh, "side").strip() == SIDE
    assert INTERPRETER not in steps(fresh, "test")


def written(file: Path, script: str) -> Path:
    """A program that stands for an interpreter."""
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def test_an_interpreter_that_could_not_be_made_is_made_again(fresh: Path) -> None:
    """`venv` links the interpreter first, and may then find no pip to put beside it."""
    script = '[ "$1" = -c ] && exit 0\nmkdir -p .venv/bin && ln -s "$0" .venv/bin/python\nexit 1'
    python = written(fresh / "python3", script)
    assert make(fresh, "side", f"PYTHON={python}").returncode == 2
    assert INTERPRETER in steps(fresh, "side")


def test_an_old_interpreter_is_refused(fresh: Path) -> None:
    pretends = "import sys; sys.version_info, sys.version = (3, 9, 2), '3.9.2 (main)'"
    python = written(fresh / "python3", f'exec "{sys.executable}" -c "{pretends}\n$2"')
    done = make(fresh, "side", f"PYTHON={python}")
    assert done.returncode == 2
    assert "make needs Python >= 3.11, found 3.9.2; try: make PYTHON=python3.11" in done.stderr
    assert not (fresh / ".venv").exists()
