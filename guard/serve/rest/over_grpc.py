"""The guarded model server, asked over gRPC for clients of the REST door: where it has no HTTP port, or none is named.

Rule 1: what REST says is translated, and nothing added: names, parameters and values are those that were inspected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from guard.errors import MalformedRequest, TooLarge, UpstreamDown
from guard.serve.aside import Aside
from guard.serve.grpc.metadata import Metadata, may_be_sent, travels
from guard.serve.grpc.upstream import Upstream
from guard.serve.grpc.upstream import path as full_path
from guard.serve.grpc.wire.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.decode import JSON_LENGTH, RestRequest, json_length, parse
from guard.serve.rest.headers import Headers, values
from guard.serve.rest.packing import coding_of, unpacked
from guard.serve.rest.translation import message_of, reply_of

MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/infer|/ready)?")
OF_HTTP = frozenset({"accept", "accept-encoding", "accept-language", "inference-header-content-length"})
STATUSES = {  # of gRPC; all others are 500
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
JSON_TYPE = ("content-type", "application/json")


class RestOverGrpc:
    """A model server that is asked over gRPC, in the place of one that is asked over HTTP (`RestUpstream`)."""

    def __init__(
        self, upstream: Upstream, versions: Mapping[str, tuple[str, ...]], *, max_bytes: int, aside: Aside
    ) -> None:
        self.upstream = upstream
        self.versions = versions
        self.max_bytes = max_bytes
        self.aside = aside

    async def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> RestAnswer:
        """Ask over gRPC what a request of V2 REST asks, whatever its answer.

        Raises:
            UpstreamDown: there was no answer.
        """
        plain = urlsplit(path).path
        metadata = upwards(headers)
        try:
            if found := MODEL_PATH.fullmatch(plain):
                name, version = unquote(found[1]), unquote(found[2] or "")
                if found[3] == "/infer":
                    return await self.infer(name, version, headers, metadata, body)
                return await self.about_model(name, version, metadata, ready=found[3] == "/ready")
            if plain == "/v2/health/ready":
                ready = await self.call("ServerReady", ServerReadyRequest(), ServerReadyResponse, metadata)
                return document(200 if ready.ready else 503, {"ready": ready.ready})
            if plain == "/v2":
                told = await self.call("ServerMetadata", ServerMetadataRequest(), ServerMetadataResponse, metadata)
                return document(200, {"name": told.name, "version": told.version, "extensions": list(told.extensions)})
        except grpc.aio.AioRpcError as error:
            return document(STATUSES.get(error.code().name, 500), {"error": error.details() or error.code().name})
        except MalformedRequest as error:
            return document(400, {"error": str(error)})
        except TooLarge as error:
            return document(413, {"error": str(error)})
        except DecodeError as error:
            raise UpstreamDown(
                "the model server behind the guard does not answer in the Open Inference Protocol"
            ) from error
        return document(
            501, {"error": f"{method} {plain[:80]} has no counterpart; the model server is asked over gRPC"}
        )

    async def call(self, method: str, request: Any, kind: Any, metadata: Metadata) -> Any:
        answer = await self.upstream.unary(full_path(method), request.SerializeToString(), metadata, None)
        return kind.FromString(answer.body)

    async def about_model(self, name: str, version: str, metadata: Metadata, *, ready: bool) -> RestAnswer:
        """Answer whether a model is ready, or what it takes and gives."""
        if ready:
            asked = ModelReadyRequest(name=name, version=version)
            state = await self.call("ModelReady", asked, ModelReadyResponse, metadata)
            return document(200 if state.ready else 503, {"name": name, "ready": state.ready})
        wanted = ModelMetadataRequest(name=name, version=version)
        told = await self.call("ModelMetadata", wanted, ModelMetadataResponse, metadata)
        tensors = {
            key: [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in getattr(told, key)]
            for key in ("inputs", "outputs")
        }
        rest = MessageToDict(told, preserving_proto_field_name=True)
        return document(200, {"versions": [], "platform": "", **rest, **tensors})

    async def infer(self, name: str, version: str, headers: Headers, metadata: Metadata, body: bytes) -> RestAnswer:
        """Ask a model, and put its reply into the form that the request wants."""

        def translated() -> tuple[RestRequest, ModelInferRequest, bytes]:
            plain = unpacked(body, coding_of(values(headers, "content-encoding")), self.max_bytes)
            request = parse(plain, json_length(values(headers, JSON_LENGTH)))
            message = message_of(request, name, version)
            return request, message, message.SerializeToString()

        request, _, sent = await self.aside(len(body), translated)
        answer = await self.upstream.unary(full_path("ModelInfer"), sent, metadata, None)
        response = ModelInferResponse.FromString(answer.body)
        text, length = await self.aside(len(answer.body), partial(reply_of, response, request))
        if length is None:
            return RestAnswer(200, (JSON_TYPE, *downwards(answer.initial)), text)
        own = (("content-type", "application/octet-stream"), (JSON_LENGTH, str(length)))
        return RestAnswer(200, (*own, *downwards(answer.initial)), text)


def upwards(headers: Headers) -> Metadata:
    """The headers of an HTTP request that a gRPC client may send, and that say nothing of HTTP itself."""
    return tuple(
        (name, value)
        for name, value in headers
        if (travels(name) or name.startswith("guard-")) and name not in OF_HTTP and may_be_sent(name, value)
    )


def downwards(metadata: Metadata) -> Headers:
    """The texts of an answer's metadata, as headers."""
    return tuple((key, value) for key, value in metadata if isinstance(value, str))


def document(status: int, told: Mapping[str, Any]) -> RestAnswer:
    return RestAnswer(status, (JSON_TYPE,), json.dumps(told).encode())
