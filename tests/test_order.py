"""The longest test files begin first, in this very run too, and those that belong together run in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layering import imports
from tests.order import LONGEST, TOGETHER, rank

FITTING = "tests.offline.detectors.fitting"
OTHERS = ("tests/test_this.py", "tests/test_that.py")


def test_the_longest_files_begin_first(request: pytest.FixtureRequest, root: Path) -> None:
    assert [file for file in LONGEST if not (root / file).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
    ranks = [rank(item) for item in request.session.items]
    assert ranks == sorted(ranks)


def beside(root: Path) -> list[str]:
    """How `make test` has pytest run files beside each other."""
    (line,) = [line for line in (root / "Makefile").read_text("utf-8").splitlines() if line.startswith("BESIDE :=")]
    return line.partition(":=")[2].split()


def test_xdist_keeps_the_order(root: Path) -> None:
    assert "--dist loadfile" in " ".join(beside(root))
    assert "--no-loadscope-reorder" in beside(root)


def test_every_file_that_reads_the_fitted_detectors_is_in_the_group(root: Path) -> None:
    """Also one that is not a test's: it would have to say which tests read it."""
    texts = {file: file.read_text("utf-8") for file in (root / "tests").rglob("*.py")}
    readers = {
        file.relative_to(root).as_posix()
        for file, text in texts.items()
        if "fitting" in text and {FITTING, f"{FITTING}.fitted"} & {one.module for one in imports(text)}
    }
    assert readers == set(TOGETHER)


@pytest.mark.slow
def test_files_that_belong_together_run_in_one_process(root: Path, tmp_path: Path) -> None:
    for file in (*TOGETHER, *OTHERS):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def test_it(): pass\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text((root / "tests/conftest.py").read_text("utf-8"), encoding="utf-8")
    (tmp_path / "pytest.ini").touch()
    options = [
        "-v",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "-p",
        "xdist.plugin",
        *beside(root),
        "-n",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {file: process for process, file in re.findall(r"\[(gw\d)\].* PASSED (\S+)::", done.stdout)}
    assert set(ran) == {*TOGETHER, *OTHERS}, done.stdout
    assert len({ran[file] for file in TOGETHER}) == 1
    assert len(set(ran.values())) == 2, "the others run beside them"
