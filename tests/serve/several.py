"""A guard of several models, driven from a configuration file, and the model server that has them."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from guard.config import SettingsSource
from guard.serve.grpc.wire.guard_pb2 import DescribeRequest, DescribeResponse
from guard.serve.grpc.wire.inference_pb2 import (
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
)
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Guarded, calling

LOOPBACK = "".join(f'{name} = "127.0.0.1:0"\n' for name in ("listen", "admin_listen", "metrics_listen"))


class SeveralModels(FakeUpstream):
    """A model server of several models: FP32 ones and, under "whole", one of UINT8; each with its versions."""

    def __init__(self, versions: Mapping[str, Sequence[str]] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.versions = versions or {}
        self.absent: set[str] = set()

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if method == "ModelReady" and (name := ModelReadyRequest.FromString(request).name) in self.absent:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {name}")
        if method == "ModelMetadata":
            name = ModelMetadataRequest.FromString(request).name
            found = ModelMetadataResponse()
            found.CopyFrom(self.metadata)
            found.name = name
            found.versions[:] = self.versions.get(name, ())
            if name == "whole":
                found.inputs[0].datatype = "UINT8"
            return found.SerializeToString()
        return await super().answer(method, request, context)


def settings(upstream: str, text: str) -> str:
    """The content of a guard.toml with these lines, on free loopback ports."""
    return f'upstream = "{upstream}"\nthreads = 1\ndrain_s = 0\n{LOOPBACK}{text}'


def configured(folder: Path, upstream: str, text: str) -> SettingsSource:
    """The source of settings that is a guard.toml with these lines."""
    file = folder / "guard.toml"
    file.write_text(settings(upstream, text), "utf-8")
    return SettingsSource(file, {}, {})


@asynccontextmanager
async def guarding_several(folder: Path, text: str, upstream: FakeUpstream | None = None) -> AsyncIterator[Guarded]:
    """A ready guard of a configuration file, in front of a model server of several models."""
    fake, stream = upstream or SeveralModels(), io.StringIO()
    async with listening(fake) as address:
        source = configured(folder, address, text)
        async with (
            running(source.load(), log=Log("debug", stream), source=source) as serving,
            calling(serving.address) as client,
        ):
            guarded = Guarded(serving, fake, client, stream)
            await guarded.until_ready()
            yield guarded


async def describe(guarded: Guarded) -> DescribeResponse:
    async with calling(guarded.serving.admin_address) as admin:
        answer = await admin.call("/guard.v1.Guard/Describe", DescribeRequest())
        return DescribeResponse.FromString(answer.body)
