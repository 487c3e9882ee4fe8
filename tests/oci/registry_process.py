"""A real registry of images as a process of its own, and skopeo, which knows nothing of the guard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serve.guarded import free_port
from tests.side import ROOT, StaleError, shelf

START_S = 30.0
GUARD = "import sys; sys.path.append(sys.argv.pop(1)); from guard.cli import main; main()"


def missing() -> str | None:
    """Why no registry can be had here; None where it can."""
    try:
        shelf("registry")
        shelf("oras")
    except StaleError as error:
        return str(error)
    return None


@contextmanager
def registry_process(folder: Path, *, tls: dict[str, str] | None = None, **settings: Any) -> Iterator[str]:
    """The address of a registry that keeps its images in a folder, within the block."""
    port = free_port()
    secured = {} if tls is None else {"tls": tls}
    content = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "test", **secured},
        **settings,
    }
    (folder / "registry.yml").write_text(json.dumps(content), encoding="utf-8")  # which YAML is, too
    command = [shelf("registry") / "usr/bin/docker-registry", "serve", folder / "registry.yml"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + START_S
            while not answers(port):
                ended = process.poll() is not None or time.monotonic() > deadline
                assert not ended, (folder / "log").read_text()
                time.sleep(0.02)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def guard(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the guard with the extra [registry]."""
    command = [sys.executable, "-c", GUARD, str(shelf("oras")), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def skopeo(*arguments: str) -> str:
    """Run skopeo and return what it printed."""
    root = shelf("registry")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")}
    command = [str(root / "usr/bin/skopeo"), "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
