"""Streams of other people's clients and servers: tritonclient in front of wrapped and bare replies, and MLServer."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from guard.serve.grpc.upstream import path
from tests.serve import tiny_bundle
from tests.serve.guarded import calling, guarding, guarding_at, infer_request
from tests.serve.mlserver_process import mlserver_process
from tests.serve.streaming_upstream import StreamingUpstream

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).parent.parent / "triton_stream_client.py"
CLEAN, STRIPED = tiny_bundle.ordinary(), tiny_bundle.striped()
ASKED = [CLEAN, STRIPED, CLEAN]


def triton_streams(
    programs: Path, address: str, images: Sequence[Any], *, answers: int, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """What the callback of a tritonclient got for these requests."""
    requests = [
        {"id": f"request-{i}", "shape": one.shape, "images": base64.b64encode(one.tobytes()).decode()}
        for i, one in enumerate(images)
    ]
    story = {"address": address, "model": tiny_bundle.MODEL_NAME, "answers": answers, "headers": headers}
    done = subprocess.run(
        [programs / "python", CLIENT],
        input=json.dumps({**story, "requests": requests}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("asks", [False, True], ids=["in the stream", "triton_grpc_error"])
def test_tritonclient_gets_each_answer_in_its_place(bundle: Path, side: Callable[[str], Path], *, asks: bool) -> None:
    async def story() -> None:
        fake = StreamingUpstream(server="triton", delay_s=0.02)
        async with guarding(bundle, fake) as guarded:
            headers, answers = ({"triton_grpc_error": "true"}, 2) if asks else (None, 3)
            found = await asyncio.to_thread(
                triton_streams, side("triton"), guarded.serving.address, ASKED, answers=answers, headers=headers
            )
            assert [one.get("id") for one in found] == ["request-0", None, "request-2"][:answers]
            assert found[1]["message"].startswith("refused by the guard: the input looks adversarial")
            assert found[1]["status"] == ("StatusCode.PERMISSION_DENIED" if asks else None)
            assert len(fake.requests) == (1 if asks else 2)

    asyncio.run(story())


def test_mlservers_streams_pass_as_they_are_and_end_with_the_status(
    bundle: Path, side: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_bundle.classifier())

    async def streamed(client: Any, images: Sequence[Any]) -> tuple[list[bytes], Any]:
        call = client.channel.stream_stream(path("ModelStreamInfer"))(
            iter([infer_request(one, id=str(i)).SerializeToString() for i, one in enumerate(images)]), timeout=20
        )
        found = []
        with suppress(grpc.aio.AioRpcError):
            found += [reply async for reply in call]
        return found, call

    async def story(address: str) -> None:
        async with guarding_at(bundle, address) as guarded, calling(address) as direct:
            await guarded.until_ready()
            for images in ([CLEAN], [np.repeat(CLEAN, 3, axis=0)]):
                wanted, plain = await streamed(direct, images)
                found, call = await streamed(guarded.client, images)
                assert (found, await call.code()) == (wanted, await plain.code())
                assert len(found) == 1
            found, call = await streamed(guarded.client, [STRIPED])
            assert (found, await call.code()) == ([], grpc.StatusCode.PERMISSION_DENIED)
            assert "refused by the guard" in await call.details()

    with mlserver_process(side("mlserver"), tmp_path, model, tiny_bundle.MODEL_NAME) as address:
        asyncio.run(story(address))
