"""Guard and model server as real processes, to be killed, signalled and waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guard.config import ServeConfig
from tests.serve import tiny_bundle

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = """
import json, sys
from guard.config import ServeConfig
from guard.serve.server import serve
serve(ServeConfig(**json.loads(sys.argv[1])))
"""
SERVE_MODEL = """
import json, sys
from pathlib import Path
from guard.serve.model_server import serve_model
settings = json.loads(sys.argv[1])
serve_model(Path(settings.pop("file")), **settings)
"""


@dataclass
class Process:
    """A started process, and the JSON lines that it has written."""

    popen: subprocess.Popen[str]
    lines: list[dict[str, Any]]

    def until_event(self, name: str) -> dict[str, Any]:
        """Read on until a line of that event."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == name:
                return self.lines[-1]
        raise AssertionError(f"the process ended without {name!r}: {self.lines}")

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@contextmanager
def process(code: str, arguments: dict[str, Any]) -> Iterator[Process]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code, json.dumps(arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as popen:
        try:
            yield Process(popen, [])
        finally:
            popen.kill()


@contextmanager
def guard_process(config: ServeConfig) -> Iterator[Process]:
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    with process(SERVE, settings) as started:
        yield started


@contextmanager
def model_process(folder: Path, listen: str = "127.0.0.1:0") -> Iterator[Process]:
    """The tiny classifier in our own model server."""
    file = folder / "tiny.onnx"
    file.write_bytes(tiny_bundle.classifier())
    with model_file_process(file, listen=listen) as started:
        yield started


@contextmanager
def model_file_process(file: Path, *, listen: str = "127.0.0.1:0", name: str | None = None) -> Iterator[Process]:
    """Any ONNX file in our own model server."""
    with process(SERVE_MODEL, {"file": str(file), "listen": listen, "name": name, "threads": 1}) as started:
        yield started
