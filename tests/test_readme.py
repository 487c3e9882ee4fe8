"""Every command that README.md shows, run as it stands, and what it says about itself, held against the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Strand:
    """Shell commands that run in a session of their own, and the file of what they print."""

    process: subprocess.Popen[bytes]
    output: Path

    def printed(self) -> str:
        """What they printed, once they have ended well."""
        code = self.process.wait(timeout=LIMIT_S)
        text = self.output.read_text(encoding="utf-8", errors="replace")
        assert code == 0, text[-4000:]
        return text


@contextmanager
def strand(lines: Iterable[str], folder: Path, output: Path) -> Iterator[Strand]:
    """Run shell commands in the folder beside this block; at its end what they left running is ended."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["COLUMNS"] = "80"
    command = ["bash", "-c", "\n".join(["set -eu", *lines])]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield Strand(process, output)
    finally:
        with suppress(ProcessLookupError):  # all have ended by themselves: then the exit code tells
            os.killpg(process.pid, signal.SIGTERM)


def wait_for_the_model(demo: Strand, folder: Path, since: float) -> None:
    """Until the demo has written its model and data, of which `seen.npz` comes last; or has ended."""
    last = folder / "seen.npz"
    while demo.process.poll() is None and not (last.exists() and last.stat().st_mtime > since):
        time.sleep(0.05)


def test_every_command_block_runs(root: Path, readme: str, side: Callable[[str], Path], tmp_path: Path) -> None:
    """The demo; beside it the other shell blocks in their order, which want its model and data and no more.

    Then the client's against what they left running, and the one in process.
    """
    client, local, answer = tmp_path / "client.py", tmp_path / "local.py", tmp_path / "answer"
    for file, program in zip((client, local), blocks(readme, "python"), strict=True):
        file.write_text(program, encoding="utf-8")
    asked = (f'"{side("triton")}/python" "{client}" > "{answer}"', f'"{sys.executable}" "{local}"')
    first, *others = blocks(readme, "sh")
    assert first == "make demo\n"
    began = time.time()
    with strand([first], root, tmp_path / "demo-output") as demo:
        wait_for_the_model(demo, root / "demo", began)
        with strand([*others, *asked], root, tmp_path / "output") as rest:
            demo.printed()
            printed = rest.printed()
    assert (root / "demo" / "model.onnx").is_file()
    assert (root / "demo" / "data.npz").is_file()
    assert '"p_value"' in printed
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
