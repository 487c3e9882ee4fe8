"""A real MLflow tracking server as a process of its own, and the guard with MLflow's client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serve.guarded import free_port
from tests.side import ROOT, StaleError, ready, shelf

START_S = 180.0
ALONE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # nothing is sent to anybody else
GUARD = "import sys; sys.path.append(sys.argv.pop(1)); from guard.cli import main; main()"


def missing() -> str | None:
    """Why no tracking server can be had here; None where it can."""
    try:
        ready("mlflow")
        shelf("mlflow-client")
    except StaleError as error:
        return str(error)
    return None


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """The address of a tracking server that keeps runs and files in a folder, within the block."""
    uri = f"http://127.0.0.1:{free_port()}"
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    place = ["--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers", "1"]
    command = [str(ready("mlflow") / "python"), "-m", "mlflow", "server", *stores, *place]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ALONE
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not answers(uri):
                ended = process.poll() is not None or time.monotonic() > deadline
                assert not ended, (folder / "log").read_text()
                time.sleep(0.05)
            yield uri
        finally:
            os.killpg(process.pid, 9)  # its workers, too


def answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=5).close()
    except OSError:
        return False
    return True


def guard(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the guard with the extra [mlflow]."""
    command = [sys.executable, "-c", GUARD, str(shelf("mlflow-client")), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ALONE, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def asked(uri: str, code: str, *arguments: str) -> Any:
    """What MLflow's own client finds, in an environment without the guard: `code` fills `found`."""
    program = f"import json, sys; from mlflow import MlflowClient; client = MlflowClient({uri!r}); found = None\n"
    program += f"{code}\nprint(json.dumps(found))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {**ALONE, "MLFLOW_TRACKING_URI": uri}
    command = [str(ready("mlflow") / "python"), "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
