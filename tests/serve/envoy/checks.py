"""Checks as Envoy's ext_authz sends them, made by hand, and what a client of Envoy would get for the answer."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2 as messages
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from guard.serve.grpc.upstream import path
from tests.serve.guarded import Client

CHECK = "/envoy.service.auth.v3.Authorization/Check"
GRPC_HEADERS = {"content-type": "application/grpc", "x-envoy-auth-partial-body": "false"}


def framed(message: bytes, *, packed: int = 0, length: int | None = None) -> bytes:
    """A message behind the five bytes that gRPC puts before each."""
    return bytes([packed]) + (len(message) if length is None else length).to_bytes(4, "big") + message


def check_request(raw: bytes | None, *, method: str = "ModelInfer", **fields: Any) -> Any:
    """A CheckRequest about a gRPC call; `fields` are those of its HTTP request, `headers` are added to the usual."""
    request = messages.CheckRequest()
    http = request.attributes.request.http
    http.method, http.size = fields.pop("verb", "POST"), fields.pop("size", -1)
    http.path = method if method.startswith("/") else path(method)
    http.headers.update({**GRPC_HEADERS, **fields.pop("headers", {})})
    for name in fields.pop("without", ()):
        del http.headers[name]
    if raw is not None:
        http.raw_body = raw
    for name, value in fields.items():
        setattr(http, name, value)
    return request


@dataclass(frozen=True)
class Told:
    """The answer to a check, as Envoy acts on it."""

    passes: bool
    status: str  # of gRPC; OK where it passes
    http_status: int
    text: str
    down: dict[str, str]  # headers for the client
    up: dict[str, str]  # headers for the model server
    removed: list[str]  # from those that the client sent

    @property
    def reason(self) -> str:
        """The reason in google.rpc.ErrorInfo."""
        packed = self.down["grpc-status-details-bin"]
        status, info = Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4))), ErrorInfo()
        assert status.details[0].Unpack(info)
        return str(info.reason)


async def check(client: Client, request: Any) -> Told:
    """Ask, and read the answer."""
    answered = await client.call(CHECK, request)
    assert answered.ok, answered.details
    answer = messages.CheckResponse.FromString(answered.body)
    denial = answer.denied_response
    replaced = {option.append_action for part in (answer.ok_response, denial) for option in part.headers}
    assert replaced <= {option_replaces()}
    status = next(code for code in grpc.StatusCode if code.value[0] == answer.status.code).name
    down = denial.headers if answer.status.code else answer.ok_response.response_headers_to_add
    return Told(
        passes=answer.status.code == 0,
        status=status,
        http_status=denial.status.code,
        text=denial.body,
        down={option.header.key: option.header.value for option in down},
        up={option.header.key: option.header.value for option in answer.ok_response.headers},
        removed=list(answer.ok_response.headers_to_remove),
    )


def option_replaces() -> int:
    option = messages.OkHttpResponse().headers.add()
    return int(option.OVERWRITE_IF_EXISTS_OR_ADD)
