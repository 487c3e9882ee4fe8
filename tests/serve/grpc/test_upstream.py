"""What tells the upstream's model from the bundle's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.manifest import InputSpec, ModelSpec, OutputSpec
from guard.serve.grpc.method_groups import REPOSITORY_INDEX
from guard.serve.grpc.served_versions import ServerFacts, versions_told
from guard.serve.grpc.upstream_watch import fits, mismatch
from guard.serve.grpc.wire.inference_pb2 import (
    ModelMetadataResponse,
    RepositoryIndexResponse,
    ServerMetadataResponse,
)
from tests.serve import tiny_bundle
from tests.serve.guarded import free_port, guarding, guarding_at, until
from tests.serve.mlserver_process import mlserver_process
from tests.serve.rest.rest_guarded import json_body
from tests.serve.several import SeveralModels

MODEL = ModelSpec("m", "2", "f", InputSpec("x", "FP32", (3, 8, 8), (0.0,), (1.0,), 255), OutputSpec("y", "logits", 10))
Tensor = ModelMetadataResponse.TensorMetadata


def told(**changes: Any) -> ModelMetadataResponse:
    """Metadata that agree with MODEL, but for `changes`."""
    inputs = changes.get("inputs", [("x", "FP32", [-1, 3, 8, 8])])
    outputs = changes.get("outputs", [("y", "FP32", [-1, 10])])
    return ModelMetadataResponse(
        name="m",
        versions=changes.get("versions", ["1", "2"]),
        inputs=[Tensor(name=n, datatype=d, shape=s) for n, d, s in inputs],
        outputs=[Tensor(name=n, datatype=d, shape=s) for n, d, s in outputs],
    )


@pytest.mark.parametrize(
    "metadata",
    [
        told(),
        told(versions=[]),
        told(inputs=[("x", "FP32", [8, 3, -1, -1])]),
        told(inputs=[], outputs=[]),  # some servers declare nothing
        told(outputs=[("z", "FP32", [-1, 4]), ("y", "FP32", [-1, -1])]),
        told(outputs=[("y", "FP32", [-1, 10, 1, 1])]),
        told(outputs=[("y", "FP32", [-1, 1, 1, 10])]),
        told(outputs=[("y", "FP32", [-1, 10, -1, -1])]),
    ],
    ids=[
        *("the same", "no versions", "open sizes", "nothing declared", "one output more"),
        *("maps of one place", "channels last", "maps of open sizes"),
    ],
)
def test_metadata_that_agree_or_say_nothing(metadata: ModelMetadataResponse) -> None:
    assert mismatch(metadata, MODEL, metadata.versions) is None


def test_a_channel_last_model_is_compared_as_it_is_served() -> None:
    last = replace(MODEL, input=replace(MODEL.input, layout="NHWC"))
    assert mismatch(told(inputs=[("x", "FP32", [-1, 8, 8, 3])]), last, ()) is None
    assert "[-1, 8, 8, 3]" in str(mismatch(told(), last, ()))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (told(versions=["1", "3"]), "version 2"),
        (told(inputs=[("image", "FP32", [-1, 3, 8, 8])]), "image"),
        (told(inputs=[("x", "FP32", [-1, 3, 8, 8]), ("mask", "FP32", [-1, 1])]), "x, mask"),
        (told(inputs=[("x", "UINT8", [-1, 3, 8, 8])]), "UINT8"),
        (told(inputs=[("x", "FP32", [-1, 8, 8, 3])]), r"\[-1, 8, 8, 3\]"),
        (told(inputs=[("x", "FP32", [3, 8, 8])]), r"\[3, 8, 8\]"),
        (told(outputs=[("probabilities", "FP32", [-1, 10])]), "probabilities"),
        (
            told(outputs=[("y", "FP32", [-1, 1000])]),
            "gives 1000 numbers an item; the bundle expects 10, logits of 10 classes",
        ),
        (told(outputs=[("y", "FP32", [-1, 10, 7, 7])]), "gives 490 numbers an item"),
    ],
    ids=["version", "name", "a second input", "datatype", "layout", "no item axis", "output", "classes", "maps"],
)
def test_a_difference_is_found_and_named(metadata: ModelMetadataResponse, said: str) -> None:
    found = mismatch(metadata, MODEL, metadata.versions)
    assert found is not None
    assert re.search(said, found)


def test_fits() -> None:
    assert fits([-1, 3], (3,))
    assert not fits([3], (3,))
    assert not fits([-1, 4], (3,))


@pytest.mark.parametrize(
    ("shape", "fits"), [([-1, 1], True), ([-1], True), ([-1, -1], True), ([-1, 1, 1, 1], True), ([-1, 2], False)]
)
def test_one_number_an_item_is_expected_of_a_model_that_gives_one(*, shape: list[int], fits: bool) -> None:
    one = replace(MODEL, output=OutputSpec("y", "probabilities", 2, single=True))
    found = mismatch(told(outputs=[("y", "FP32", shape)]), one, ())
    assert fits is (found is None)
    assert fits or "gives 2 numbers an item; the bundle expects 1, one probability, of class 1 of 2" in str(found)


INDEX = [("m", "v1"), ("m", "v2"), ("n", ""), ("other", "3")]


@pytest.mark.parametrize(
    ("server", "model", "listed", "index", "versions"),
    [
        ("triton", "m", ["1", "2"], None, ("1", "2")),
        ("mlserver", "m", ["sklearn/0.20.1"], INDEX, ("v1", "v2")),
        ("mlserver", "n", ["sklearn/0.20.1"], INDEX, ()),
        ("mlserver", "absent", ["sklearn/0.20.1"], INDEX, None),
        ("mlserver-of-ours", "m", ["sklearn/0.20.1", "numpy/1.2"], None, None),
        ("of another name", "m", [], INDEX, ("v1", "v2")),
        ("of another name", "m", ["1"], None, ("1",)),
        ("of another name", "absent", ["1"], INDEX, ("1",)),
        ("mixed", "m", [], [("m", ""), ("m", "v1")], ("", "v1")),
    ],
)
def test_what_tells_the_versions_of_a_model(
    server: str, model: str, listed: list[str], index: list[tuple[str, str]] | None, versions: tuple[str, ...] | None
) -> None:
    assert versions_told(server, model, listed, index) == versions


def test_a_server_is_asked_again_for_what_it_has_and_not_for_what_it_lacks() -> None:
    asked: list[str] = []
    index: list[tuple[str, str]] | None = [("m", "v1")]

    async def ask_name() -> str:
        asked.append("name")
        return "mlserver"

    async def ask_index(place: str) -> list[tuple[str, str]] | None:
        asked.append(place)
        return index if place == "second" else None

    async def story() -> None:
        nonlocal index
        facts = ServerFacts(("first", "second"))

        async def versions() -> tuple[str, ...] | None:
            return await facts.versions_of("m", ["numpy/2"], ask_name=ask_name, ask_index=ask_index)

        assert [await versions() for _ in range(2)] == [("v1",)] * 2
        assert asked == ["name", "first", "second", "second"]
        index = None
        assert await versions() == ("v1",)
        index = [("m", "v1"), ("m", "v2")]
        assert await versions() == ("v1", "v2")
        facts.forget()
        index = None
        assert await versions() is None
        assert await versions() is None
        assert asked[6:] == ["name", "first", "second"]

    asyncio.run(story())


class MlServer(SeveralModels):
    """It lists packages in its metadata, and its models' versions in the index of its repository alone."""

    def __init__(self, *versions: str, indexed: bool = True) -> None:
        super().__init__({tiny_bundle.MODEL_NAME: ["sklearn/0.20.1", "numpy/1.2"]})
        self.loaded, self.indexed = list(versions), indexed

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if method == "ServerMetadata":
            return bytes(ServerMetadataResponse(name="mlserver").SerializeToString())
        if method == REPOSITORY_INDEX and self.indexed:
            kind = RepositoryIndexResponse.ModelIndex
            models = [kind(name=tiny_bundle.MODEL_NAME, version=version, state="READY") for version in self.loaded]
            return bytes(RepositoryIndexResponse(models=models).SerializeToString())
        return await super().answer(method, request, context)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for version v1."""
    return tiny_bundle.make(tmp_path_factory.mktemp("first") / "v1", version="v1").path


def asked_for(bundle: Path, fake: MlServer, *versions: str) -> list[str]:
    """What becomes of a request for each version: "pass", or the reason for which it is refused."""
    ends: list[str] = []

    async def story() -> None:
        async with guarding(bundle, fake) as guarded:
            for version in versions:
                answer = await guarded.client.infer(tiny_bundle.ordinary(1), model_version=version)
                ends.append("pass" if answer.ok else answer.reason)

    asyncio.run(story())
    return ends


def test_packages_that_mlserver_lists_are_no_versions_of_its_model(bundle: Path, first: Path) -> None:
    assert asked_for(first, MlServer("v1", "v2"), "v1", "v2", "") == ["pass", "UNKNOWN_MODEL", "UNKNOWN_MODEL"]
    assert asked_for(first, MlServer("v1"), "v1", "v2", "") == ["pass", "UNKNOWN_MODEL", "pass"]
    assert asked_for(bundle, MlServer("v1"), "v1", "v2", "") == ["pass", "UNKNOWN_MODEL", "pass"]
    assert asked_for(bundle, MlServer(""), "") == ["pass"]
    assert asked_for(first, MlServer(indexed=False), "v1", "v2") == ["pass", "UNKNOWN_MODEL"]
    assert asked_for(bundle, MlServer(indexed=False), "v2", "") == ["UNCHECKED", "pass"]


def test_a_version_that_mlserver_loads_meanwhile_is_seen(bundle: Path) -> None:
    async def story() -> None:
        fake = MlServer("v1")
        async with guarding(bundle, fake) as guarded:
            fake.loaded.append("v2")
            await until(lambda: "has versions v1, v2" in str(guarded.serving.readiness.because))
            assert (await guarded.client.infer(tiny_bundle.ordinary(1))).reason == "UNKNOWN_MODEL"

    asyncio.run(story())


def test_versions_in_mlserver_itself(first: Path, side: Callable[[str], Path], tmp_path: Path) -> None:
    """Over gRPC and over HTTP: the package that its metadata name is no version, and v2 is not the bundle's."""
    port, model = free_port(), tmp_path / "tiny.onnx"
    model.write_bytes(tiny_bundle.classifier())

    async def story(address: str) -> None:
        rest = {"rest_listen": "127.0.0.1:0", "rest_upstream": f"http://127.0.0.1:{port}"}
        async with guarding_at(first, address, **rest) as guarded:
            await guarded.until_ready()
            clean = tiny_bundle.ordinary(1)
            found = [await guarded.client.infer(clean, model_version=version) for version in ("v1", "v2", "")]
            assert [answer.ok or answer.reason for answer in found] == [True, "UNKNOWN_MODEL", "UNKNOWN_MODEL"]
            base = f"http://{guarded.serving.rest_address}/v2/models/tiny"
            async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
                for part, status in (("/versions/v1", 200), ("/versions/v2", 404), ("", 404)):
                    answer = await client.post(f"{base}{part}/infer", content=json_body(clean))
                    assert answer.status_code == status, answer.text

    with mlserver_process(
        side("mlserver"), tmp_path, model, tiny_bundle.MODEL_NAME, versions=("v1", "v2"), http_port=port
    ) as address:
        asyncio.run(story(address))
