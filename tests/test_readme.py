"""Every command that README.md shows, run as it stands, and what it says about itself, held against the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from guard.errors import leaves

pytestmark = pytest.mark.readme
LIMIT_S = 900


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_every_command_block_runs(root: Path, readme: str, side: Callable[[str], Path], tmp_path: Path) -> None:
    """The shell blocks in their order, then the client's against what they left running, and the one in process."""
    client, local, answer = tmp_path / "client.py", tmp_path / "local.py", tmp_path / "answer"
    for file, program in zip((client, local), blocks(readme, "python"), strict=True):
        file.write_text(program, encoding="utf-8")
    asked = (f'"{side("triton")}/python" "{client}" > "{answer}"', f'"{sys.executable}" "{local}"')
    script = "\n".join(["set -eu", *blocks(readme, "sh"), *asked])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["COLUMNS"] = "80"
    output = tmp_path / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=root, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = process.wait(timeout=LIMIT_S)
        finally:
            with suppress(ProcessLookupError):  # all have ended by themselves: then the exit code tells
                os.killpg(process.pid, signal.SIGTERM)
    said = output.read_text(encoding="utf-8", errors="replace")
    assert code == 0, said[-4000:]
    assert '"p_value"' in said
    told = answer.read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"\d", told) or "refused by the guard" in told, told


def test_every_error_has_its_row(readme: str) -> None:
    for leaf in leaves():
        assert f"| {leaf.__name__} | {leaf.status} | {leaf.exit_code} |" in readme


def test_every_setting_is_named(readme: str) -> None:
    from dataclasses import fields

    from guard.config import ServeConfig

    for field in fields(ServeConfig):
        assert f"`{field.name}`" in readme, field.name


def test_no_figure_is_missing(readme: str) -> None:
    assert "filled in at the end" not in readme
