"""MLServer as a real process of its own environment, serving an ONNX file with `mlserver_runtime`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelReadyRequest, ModelReadyResponse
from tests.serve.guarded import free_port

RUNTIME = Path(__file__).with_name("mlserver_runtime.py")
START_S = 60.0  # it imports pandas, FastAPI and Kafka first: three seconds on an idle machine
LOG = "mlserver.log"
SETTINGS = {
    "debug": False,
    "parallel_workers": 0,  # with workers MLServer 1.7.1 dies under uvloop 0.22 and later
    "host": "127.0.0.1",
    "metrics_endpoint": None,
}


@contextmanager
def mlserver_process(
    programs: Path,
    folder: Path,
    model: Path,
    name: str,
    *,
    runtime: str | None = None,
    versions: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """The gRPC address of an MLServer that is ready to serve `model` as `name`; its files and log go to `folder`.

    `runtime` is a class of the environment's own that serves the model; ours for ONNX files unless given. With
    `versions` the same model is served under each of them.
    """
    ports = {key: free_port() for key in ("http_port", "grpc_port")}
    write(folder / "settings.json", {**SETTINGS, **ports, **settings})
    served_by = runtime or f"{RUNTIME.stem}.OnnxRuntime"
    for version in versions or [None]:
        place = folder / (version or "")
        place.mkdir(exist_ok=True)
        parameters = {"uri": str(model.resolve()), **({} if version is None else {"version": version})}
        served = {"name": name, "implementation": served_by, "parameters": parameters, "versions": ["onnx/1.19"]}
        write(place / "model-settings.json", served)
    shutil.copy(RUNTIME, folder)
    address = f"127.0.0.1:{ports['grpc_port']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLSERVER_", "PYTHON"))}
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(
            [programs / "mlserver", "start", "."], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            until_model_ready(address, name, process, folder / LOG)
            yield address
        finally:
            process.kill()


def write(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings), encoding="utf-8")


def until_model_ready(address: str, name: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Ask in the protocol until the model is ready; fail with what the process wrote when it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not model_ready(address, name):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"MLServer at {address} is not ready; it wrote\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def model_ready(address: str, name: str) -> bool:
    """False also where nothing answers, or the server says that it knows no such model."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(
            path("ModelReady"),
            request_serializer=ModelReadyRequest.SerializeToString,
            response_deserializer=ModelReadyResponse.FromString,
        )
        try:
            return bool(ask(ModelReadyRequest(name=name), timeout=5.0).ready)
        except grpc.RpcError:
            return False
