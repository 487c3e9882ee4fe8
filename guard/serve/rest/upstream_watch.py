"""The watch on the model server over HTTP: whether it is ready, and has each guarded model as its bundle expects it.

Rule 1: one model that is missing or differs makes that model not ready; the server's own absence makes all so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from guard.errors import UpstreamDown
from guard.manifest import ModelSpec
from guard.serve.grpc.served_versions import Index, ServerFacts, noted
from guard.serve.grpc.upstream_watch import POLL_DOWN_S, POLL_READY_S, mismatch
from guard.serve.grpc.wire.inference_pb2 import ModelMetadataResponse
from guard.serve.models import Models
from guard.serve.readiness import Readiness
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.paths import MODEL_METADATA, MODEL_READY, READY, SERVER_METADATA, RestPath
from guard.serve.rest.upstream import RestUpstream

PART = "rest_upstream"
MAX_METADATA_BYTES = 2**20
INDEX = "/v2/repository/index"
OPTIONAL_SHARE = 4  # of the time for a check, one part in so many is for each answer that not every server has
JSON_HEADERS = (("content-type", "application/json"),)
ODD_JSON = (ValueError, TypeError, AttributeError, KeyError, RecursionError)  # what a JSON of another form raises


@dataclass(frozen=True)
class RestUpstreamWatch:
    """The watch that keeps the part of readiness, and the versions that the upstream has, true."""

    upstream: RestUpstream
    models: Models
    readiness: Readiness
    server: ServerFacts = field(default_factory=partial(ServerFacts, (INDEX,)))

    async def run(self) -> None:
        """Check the model server until the task is cancelled."""
        while True:
            self.upstream.doubt.clear()
            ready = await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_READY_S if ready else POLL_DOWN_S):
                    await (self.upstream.doubt.wait() if ready else asyncio.Event().wait())

    async def check(self) -> bool:
        """Check the server and each model once, and tell readiness; return whether all are ready."""
        table = self.models.table
        reason, ready = await self.reason_of(self.server_reason()), True
        for model in table.models if reason is None else ():
            of_model = await self.reason_of(self.model_reason(model.spec))
            ready = ready and of_model is None
            if self.models.table is table:  # otherwise it was replaced meanwhile, and is checked next
                self.readiness.say(PART, of_model, model=model.label)
        if reason is not None:
            self.server.forget()
        self.readiness.say(PART, reason)
        return ready and reason is None

    async def objection(self, model: ModelSpec) -> str | None:
        """What the model server, if it is there, lacks of a model; None where nothing speaks against it."""
        if await self.reason_of(self.server_reason()) is not None:
            return None
        return await self.reason_of(self.model_reason(model))

    def look_again(self) -> None:
        """Have the server and all models checked at once."""
        self.upstream.doubt.set()

    async def reason_of(self, checking: Awaitable[str | None]) -> str | None:
        """The reason that a check finds, or its own failure."""
        where = self.upstream.where
        try:
            async with asyncio.timeout(self.upstream.timeout_s):
                return await checking
        except TimeoutError:
            return f"{where} did not answer within {self.upstream.timeout_s:g} s"
        except UpstreamDown:
            return f"{where} cannot be reached"
        except ODD_JSON:
            return f"{where} does not answer in the Open Inference Protocol"

    async def server_reason(self) -> str | None:
        answer = await self.upstream.ask("GET", READY.template)
        return None if says_ready(answer) else f"{self.upstream.where} says that it is not ready ({answer.status})"

    async def model_reason(self, model: ModelSpec) -> str | None:
        """The reason why the upstream's model is not ready for its bundle; None when it is."""
        where, name = self.upstream.where, model.name
        answer = await self.ask_about(model, MODEL_READY)
        if not says_ready(answer):
            return f"{where} says that model {name!r} is not ready ({answer.status})"
        answer = await self.ask_about(model, MODEL_METADATA)
        if not answer.ok:
            return f"{where} answered about model {name!r}: HTTP status {answer.status}"
        metadata = metadata_of(answer.body)
        served = await self.versions_of(name, metadata)
        return mismatch(metadata, model, noted(self.upstream.versions, name, served))

    async def versions_of(self, name: str, metadata: ModelMetadataResponse) -> tuple[str, ...] | None:
        """The versions that the server has of a model, whose metadata are these; None where nothing tells them."""

        async def ask_name() -> str | None:
            found = await self.told("GET", SERVER_METADATA.template)
            return str(found["name"]) if isinstance(found, dict) and "name" in found else None

        async def ask_index(path: str) -> Index | None:
            found = await self.told("POST", path, b'{"ready": true}')
            with suppress(*ODD_JSON):
                return None if found is None else [(str(one["name"]), str(one.get("version") or "")) for one in found]
            return None

        return await self.server.versions_of(name, metadata.versions, ask_name=ask_name, ask_index=ask_index)

    async def told(self, method: str, path: str, body: bytes = b"") -> Any:
        """The JSON with which the server answers what not every server does; None where it does not, in good time."""
        headers = JSON_HEADERS if body else ()
        with suppress(TimeoutError, UpstreamDown, *ODD_JSON):
            async with asyncio.timeout(self.upstream.timeout_s / OPTIONAL_SHARE):
                answer = await self.upstream.ask(method, path, headers, body)
            return json.loads(answer.body) if answer.ok else None
        return None

    async def ask_about(self, model: ModelSpec, paths: tuple[RestPath, RestPath]) -> RestAnswer:
        path = paths[1] if model.version else paths[0]
        return await self.upstream.ask("GET", path.filled({"model": model.name, "version": model.version}))


def says_ready(answer: RestAnswer) -> bool:
    """Whether an answer says so by its status and, where it has one, by its JSON."""
    if not answer.ok:
        return False
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return True
    return not isinstance(document, dict) or document.get("ready") is not False


def metadata_of(body: bytes) -> ModelMetadataResponse:
    """The metadata of a model, which REST and gRPC name alike. Raises what a JSON of another form makes it raise."""
    if len(body) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata of {len(body)} bytes")
    document = json.loads(body)
    found = ModelMetadataResponse(
        name=document.get("name", ""), versions=[str(version) for version in document.get("versions") or ()]
    )
    for given, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
        for tensor in document.get(given) or ():
            tensors.add(name=tensor["name"], datatype=tensor.get("datatype", ""), shape=tensor.get("shape") or ())
    return found
