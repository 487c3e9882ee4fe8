"""The wire against the world: stubs as protoc makes them, tritonclient in one process, an unmodified client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pool import Default
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.runtime import Runtime
from guard.serve.grpc.wire import guard_pb2, inference_pb2
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, received
from tests.serve.guarded import config_for, guarding
from tests.serve.processes import guard_process, model_process

Side = Callable[[str], Path]


def test_the_committed_stubs_are_what_protoc_makes(side: Side, root: Path, tmp_path: Path) -> None:
    subprocess.run([side("stubs") / "python", root / "proto" / "generate.py", "--out", tmp_path], check=True)
    committed = root / "guard" / "serve" / "grpc" / "wire"
    names = sorted(file.name for file in committed.glob("*_pb2.py*"))
    assert names == sorted(file.name for file in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_text() == (committed / name).read_text(), (
            f"{name} is stale: run proto/generate.py"
        )


def test_field_numbers_are_the_protocols() -> None:
    """The one table that every server of the protocol shares; a typo here would be a private protocol."""
    wanted = {
        "ModelInferRequest": "model_name=1 model_version=2 id=3 parameters=4 inputs=5 outputs=6 raw_input_contents=7",
        "ModelInferResponse": "model_name=1 model_version=2 id=3 parameters=4 outputs=5 raw_output_contents=6",
        "InferTensorContents": "bool_contents=1 int_contents=2 int64_contents=3 uint_contents=4 uint64_contents=5 "
        "fp32_contents=6 fp64_contents=7 bytes_contents=8",
        "InferParameter": "bool_param=1 int64_param=2 string_param=3 double_param=4 uint64_param=5",
        "ModelMetadataResponse": "name=1 versions=2 platform=3 inputs=4 outputs=5 properties=6",
        "ModelReadyRequest": "name=1 version=2",
    }
    for name, fields in wanted.items():
        descriptor = inference_pb2.DESCRIPTOR.message_types_by_name[name]
        assert " ".join(f"{field.name}={field.number}" for field in descriptor.fields) == fields


def test_our_messages_are_not_in_the_default_pool() -> None:
    for file in (inference_pb2, guard_pb2):
        with pytest.raises(KeyError):
            Default().FindFileByName(file.DESCRIPTOR.name)


OURS = "from guard.serve.grpc.wire import inference_pb2 as ours, guard_pb2"
THEIRS = "import tritonclient.grpc; from tritonclient.grpc import service_pb2 as theirs"
CHECK = """
message = ours.ModelInferRequest(model_name="m", id="7")
message.parameters["p"].double_param = 0.5
message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
message.raw_input_contents.append(b"12345678")
body = message.SerializeToString(deterministic=True)
assert theirs.ModelInferRequest.FromString(body).SerializeToString(deterministic=True) == body
assert ours.ModelInferRequest.FromString(body) == message
import google.protobuf
print(google.protobuf.__version__)
"""


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_tritonclient_and_we_live_in_one_process(side: Side, root: Path, order: tuple[str, str]) -> None:
    """In the side environment, hence on protobuf 6; every other test runs on the newest."""
    code = "\n".join((*order, CHECK))
    done = subprocess.run(
        [side("triton") / "python", "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6.")


def triton(side: Side, address: str, requests: list[tuple[str, NDArray[np.float32], str | None]]) -> dict[str, Any]:
    """What an unmodified tritonclient finds at `address`."""
    story = {
        "address": address,
        "model": tiny_bundle.MODEL_NAME,
        "requests": [
            {
                "id": name,
                "images": base64.b64encode(images.tobytes()).decode(),
                "shape": images.shape,
                "compression": compression,
            }
            for name, images, compression in requests
        ],
    }
    script = Path(__file__).parent.with_name("triton_client.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [side("triton") / "python", script],
        input=json.dumps(story),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_unmodified_client_changes_only_its_port(side: Side, bundle: Path, tmp_path: Path) -> None:
    """Real processes all. Clean answers are equal byte for byte to those of a direct call."""
    clean = [
        ("a", tiny_bundle.ordinary(1), None),
        ("b", tiny_bundle.ordinary(5, seed=9), "gzip"),
        ("c", tiny_bundle.ordinary(1, seed=4), "deflate"),
    ]
    crafted = [("d", tiny_bundle.bright(1), None), ("e", tiny_bundle.striped(1), "gzip")]
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream)) as guard:
            address = guard.until_event("listening")["inference"]
            guard.until_event("ready")
            direct = triton(side, upstream, clean)
            through = triton(side, address, [*clean, *crafted])
    assert [through[key] for key in ("live", "ready", "model_ready")] == [True, True, True]
    assert through["metadata"] == direct["metadata"]
    assert [answer["id"] for answer in direct["answers"]] == ["a", "b", "c"]
    assert through["answers"][:3] == direct["answers"]
    for answer in through["answers"][3:]:
        assert answer["status"] == "StatusCode.PERMISSION_DENIED"
        assert "looks adversarial" in answer["message"]
    status, message = through["repository"]
    assert status == "StatusCode.UNIMPLEMENTED"
    assert "allow_methods" in message


def test_what_an_unmodified_client_sends_is_repaired(side: Side, bundle: Path) -> None:
    async def story() -> None:
        opened = Bundle.open(bundle)
        suspicious = tiny_bundle.flagged(opened)
        async with guarding(bundle, FakeUpstream(), repair="steps") as guarded:
            found = await asyncio.to_thread(triton, side, guarded.serving.address, [("r", suspicious, None)])
            assert found["answers"][0]["id"] == "r"
            (sent,) = guarded.upstream.requests
            np.testing.assert_array_equal(
                received(sent), Runtime.open(opened, threads=1).repair(suspicious, "steps").images
            )

    asyncio.run(story())
