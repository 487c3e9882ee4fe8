"""The reference upstream answers as the protocol says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from guard.errors import ModelError, PortError
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse
from guard.serve.model_server import ServedModel, serve_model, serving
from guard.serve.probe import probe
from tests.serve import tiny_bundle
from tests.serve.guarded import Client, calling, infer_request


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    (tmp_path / "tiny.onnx").write_bytes(tiny_bundle.classifier())
    return ServedModel(tmp_path / "tiny.onnx", name=None, version="1", threads=1)


@asynccontextmanager
async def answering(model: ServedModel) -> AsyncIterator[tuple[Client, str]]:
    async with serving(model, "127.0.0.1:0") as address, calling(address) as client:
        yield client, address


def test_raw_is_answered_raw_and_typed_typed(model: ServedModel) -> None:
    async def story() -> None:
        images = tiny_bundle.ordinary(3)
        matrix, _ = tiny_bundle.weights()
        wanted = images.reshape(3, -1) @ matrix
        async with answering(model) as (client, _):
            raw = ModelInferResponse.FromString((await client.call("ModelInfer", infer_request(images, id="7"))).body)
            typed = ModelInferResponse.FromString(
                (await client.call("ModelInfer", infer_request(images, form="typed"))).body
            )
        assert (raw.id, raw.model_name, raw.model_version) == ("7", "tiny", "1")
        assert list(raw.outputs[0].shape) == [3, 3]
        np.testing.assert_allclose(
            np.frombuffer(raw.raw_output_contents[0], np.float32).reshape(3, 3), wanted, atol=1e-4
        )
        assert not raw.outputs[0].HasField("contents")
        np.testing.assert_allclose(np.reshape(typed.outputs[0].contents.fp32_contents, (3, 3)), wanted, atol=1e-4)
        assert not typed.raw_output_contents

    asyncio.run(story())


def test_metadata_and_readiness(model: ServedModel) -> None:
    async def story() -> None:
        async with answering(model) as (client, address):
            body = (await client.call("ModelMetadata", ModelMetadataRequest(name="tiny"))).body
            metadata = ModelMetadataResponse.FromString(body)
            assert (metadata.inputs[0].name, metadata.inputs[0].datatype) == ("input", "FP32")
            assert list(metadata.inputs[0].shape) == [-1, *tiny_bundle.SHAPE]
            for method in ("ServerLive", "ServerReady", "ServerMetadata"):
                assert (await client.call(method, b"")).body
            await asyncio.to_thread(probe, address)

    asyncio.run(story())


def test_what_it_cannot_do_has_a_status(model: ServedModel) -> None:
    async def story() -> None:
        wrong_shape = infer_request(tiny_bundle.ordinary(1))
        wrong_shape.inputs[0].shape[:] = [1, 1, 2, 8]
        wrong_size = infer_request(tiny_bundle.ordinary(1))
        wrong_size.inputs[0].shape[:] = [2, 1, 4, 4]
        wrong_type = infer_request(tiny_bundle.ordinary(1))
        wrong_type.inputs[0].datatype = "FP64"
        wrong_output = infer_request(tiny_bundle.ordinary(1))
        wrong_output.outputs.add(name="nothing")
        async with answering(model) as (client, _):
            for request in (wrong_shape, wrong_size, wrong_type, wrong_output, b"\xff"):
                answer = await client.call("ModelInfer", request)
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, request
            assert (await client.infer(tiny_bundle.ordinary(1), name="x")).code is grpc.StatusCode.NOT_FOUND
            assert (await client.infer(tiny_bundle.ordinary(1), model_version="9")).code is grpc.StatusCode.NOT_FOUND
            assert (await client.call("RepositoryModelLoad", b"")).code is grpc.StatusCode.UNIMPLEMENTED
            assert (await client.infer(tiny_bundle.ordinary(1))).ok

    asyncio.run(story())


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    for file in (tmp_path / "bad.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ModelError) as caught:
            serve_model(file, listen="127.0.0.1:0")
        assert "\n" not in str(caught.value)
        assert file.name in str(caught.value)


def test_a_taken_port(model: ServedModel) -> None:
    async def story() -> None:
        async with answering(model) as (_, address):
            with pytest.raises(PortError, match=address):
                async with serving(model, address):
                    raise AssertionError("two servers on one port")

    asyncio.run(story())
