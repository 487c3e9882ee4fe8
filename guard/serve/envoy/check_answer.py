"""The answers to a check: Envoy forwards with the guard's marks in the headers, or ends the call with a status.

How it works. For a gRPC call Envoy ends what is denied with headers alone: its own `grpc-status`, which it derives from
the HTTP status (403 becomes PERMISSION_DENIED, 400 INTERNAL, 404 UNIMPLEMENTED, 429 and 503 UNAVAILABLE). Headers of a
denial replace those that Envoy has set, so `grpc-status` is told outright, and ErrorInfo goes in
`grpc-status-details-bin`, in base64 as HTTP/2 wants it. The text of the error is the body, which Envoy turns into
`grpc-message`.

Rule 1: a client's own `guard-*` headers never reach the model server.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from guard.errors import GuardError, RequestError
from guard.serve.grpc.call import Call
from guard.serve.grpc.metadata import OURS, Metadata
from guard.serve.principal import FORWARDED_CERTIFICATE

FAULT_CODE = 500


def allowed(messages: Any, call: Call, names: Iterable[str]) -> bytes:
    """The serialized answer that lets a request with headers of these names pass, with the call's marks both ways."""
    answer = messages.CheckResponse()
    set_headers(answer.ok_response.headers, call.marks)
    set_headers(answer.ok_response.response_headers_to_add, call.marks)
    marked = {key for key, _ in call.marks}
    kept = call.withheld - {FORWARDED_CERTIFICATE}  # of that, Envoy itself says whether it goes on
    answer.ok_response.headers_to_remove.extend(
        sorted(name for name in names if (name.startswith(OURS) and name not in marked) or name in kept)
    )
    return bytes(answer.SerializeToString())


def denied(messages: Any, call: Call, error: GuardError, *, is_grpc: bool) -> bytes:
    """The serialized answer that ends a request with an error's status, its text and its reason."""
    refusal = call.refusal(error)
    code = refusal.code.value[0]
    answer = messages.CheckResponse()
    answer.status.code = code
    answer.status.message = refusal.details
    answer.denied_response.status.code = error.http_status if isinstance(error, RequestError) else FAULT_CODE
    answer.denied_response.body = refusal.details
    set_headers(answer.denied_response.headers, refusal.trailing)
    if is_grpc:
        set_headers(answer.denied_response.headers, (("grpc-status", str(code)),))
    return bytes(answer.SerializeToString())


def set_headers(options: Any, metadata: Metadata) -> None:
    """Add headers, each of which replaces what is there; bytes go in base64 without padding, as gRPC sends them."""
    for key, value in metadata:
        option = options.add()
        option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key = key
        option.header.value = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
