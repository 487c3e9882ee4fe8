"""The serving environment of the Dockerfile, `[cpu]` alone: everything that serves runs, and torch is not there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.serve import tiny_bundle
from tests.serve.guarded import free_port

Side = Callable[[str], Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cpu")
    tiny_bundle.make(made / "bundle")
    (made / "model.onnx").write_bytes(tiny_bundle.classifier())
    np.savez(made / "data.npz", images=tiny_bundle.ordinary(2))
    return made


def guard(side: Side, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [side("cpu") / "guard", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("module", ["torch", "onnx", "sklearn", "scipy"])
def test_offline_libraries_are_not_there(side: Side, module: str, tmp_path: Path) -> None:
    command = [side("cpu") / "python", "-c", f"import {module}"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_inspect_and_score(side: Side, folder: Path) -> None:
    assert "promise" in guard(side, "inspect", "bundle", cwd=folder).stdout
    lines = guard(side, "score", "bundle", "data.npz", cwd=folder).stdout.splitlines()
    assert [json.loads(line)["item"] for line in lines] == [0, 1]


def test_training_says_what_to_install(side: Side, folder: Path) -> None:
    words = ("train", "--model", "m:f", "--data", "data.npz", "--out", "out")
    answer = guard(side, *words, cwd=folder)
    assert answer.returncode == 2
    assert "inference-guard[cpu,offline]" in answer.stderr


def test_serve_model_server_and_probe(side: Side, folder: Path) -> None:
    upstream, listen, metrics, admin = (f"127.0.0.1:{free_port()}" for _ in range(4))
    model = ("model-server", "--model", "model.onnx", "--name", tiny_bundle.MODEL_NAME, "--listen", upstream)
    sidecar = ("serve", "--bundle", "bundle", "--upstream", upstream, "--listen", listen)
    listeners = ("--metrics-listen", metrics, "--admin-listen", admin)
    program = side("cpu") / "guard"
    with (
        subprocess.Popen([program, *model], cwd=folder, stderr=subprocess.DEVNULL) as server,
        subprocess.Popen([program, *sidecar, *listeners], cwd=folder, stderr=subprocess.DEVNULL) as guarding,
    ):
        try:
            codes = [guard(side, "probe", listen, "--timeout", "1", cwd=folder).returncode for _ in range(1)]
            while codes[-1] != 0 and len(codes) < 40 and server.poll() is None and guarding.poll() is None:
                codes.append(guard(side, "probe", listen, "--timeout", "1", cwd=folder).returncode)
            assert codes[-1] == 0, codes
            assert guard(side, "probe", listen, "--service", "", cwd=folder).returncode == 0
        finally:
            guarding.terminate()
            server.terminate()
    assert guarding.returncode == 0
    assert server.returncode == 0
