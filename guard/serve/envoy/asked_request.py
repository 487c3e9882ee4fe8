"""The HTTP request that Envoy asks about, and the one gRPC message in its body.

Rule 1: what is inspected is what Envoy forwards: a body that is cut off, packed, or holds more than one message cannot
        be inspected, and is never passed as if it were.
Rule 2: nothing passes because of a header that a client could have sent as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import MalformedRequest, TooLarge, Uninspectable
from guard.serve.grpc.metadata import Metadata

PARTIAL = "x-envoy-auth-partial-body"
CONTENT_TYPES = frozenset({"application/grpc", "application/grpc+proto"})
PREFIX_BYTES = 5  # of each gRPC message: whether it is packed, and its length


@dataclass(frozen=True)
class AskedRequest:
    """A request as Envoy describes it: its path, its headers and, where the route sends it along, its body."""

    verb: str  # of HTTP
    path: str
    headers: Mapping[str, str]
    body: bytes
    size_bytes: int  # as its client announced; -1 where unknown
    has_text_body: bool = False  # Envoy sent the body in the field that only text survives
    principal: str = ""  # that Envoy read in its client's certificate

    @staticmethod
    def of(check: Any) -> AskedRequest:
        """Read the request out of a CheckRequest; headers come as text or, with `encode_raw_headers`, as bytes."""
        http = check.attributes.request.http
        headers = {key.lower(): value for key, value in http.headers.items()}
        for header in http.header_map.headers:
            value = header.value or header.raw_value.decode("latin-1")
            key = header.key.lower()
            headers[key] = f"{headers[key]},{value}" if key in headers else value
        text = not http.raw_body and bool(http.body)
        principal = str(check.attributes.source.principal)
        return AskedRequest(http.method, http.path, headers, http.raw_body, http.size, text, principal)

    @property
    def is_grpc(self) -> bool:
        return self.content_type.startswith("application/grpc")

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def metadata(self) -> Metadata:
        """The headers as a call's metadata."""
        return tuple(self.headers.items())

    def message(self, largest_bytes: int) -> bytes:
        """The one message in the body of a unary gRPC call.

        Raises:
            MalformedRequest: the request is no such call, or holds no message, a part of one, or several.
            Uninspectable: Envoy did not send the whole body as bytes, or the message is packed.
            TooLarge: the message is larger than any request may be.
        """
        if self.verb != "POST" or self.content_type not in CONTENT_TYPES:
            raise MalformedRequest(
                f"the request is {self.verb[:20]!r} with content-type {self.content_type[:40]!r}; a gRPC call is a "
                f"'POST' with {' or '.join(sorted(CONTENT_TYPES))}"
            )
        self.check_whole()
        packed, length = self.body[0], int.from_bytes(self.body[1:PREFIX_BYTES], "big")
        there = len(self.body) - PREFIX_BYTES
        if packed == 1:
            raise Uninspectable("the message is compressed, and the guard behind Envoy unpacks none; send it plain")
        if packed or there < length:
            raise MalformedRequest(
                f"the body is no gRPC message: its prefix is {self.body[:PREFIX_BYTES].hex()}, and {there} bytes follow"
            )
        if there > length:
            raise MalformedRequest(
                f"the body holds {there - length} bytes behind its first message; a ModelInfer call brings exactly one"
            )
        if length > largest_bytes:
            raise TooLarge(f"the message has {length} bytes; max_message_bytes = {largest_bytes}; send fewer items")
        return self.body[PREFIX_BYTES:]

    def check_whole(self) -> None:
        """Raise unless the body is there as it came: all of it, and not packed on its way."""
        packed = self.headers.get("content-encoding", "identity").strip().lower()
        if packed != "identity":
            raise Uninspectable(f"the body has content-encoding {packed[:40]!r}; send it plain")
        if self.has_text_body:
            raise Uninspectable("Envoy sent the body as text; set pack_as_bytes: true in its with_request_body")
        if not self.body and PARTIAL not in self.headers:
            raise Uninspectable("Envoy sent no body; set with_request_body on the route of ModelInfer")
        cut = self.headers.get(PARTIAL, "").strip().lower() not in ("", "false")
        if cut or (self.size_bytes >= 0 and self.size_bytes != len(self.body)):
            raise Uninspectable(
                f"Envoy sent {len(self.body)} bytes of the body and not all of it; raise max_request_bytes in its "
                "with_request_body, and leave allow_partial_message off"
            )
        if len(self.body) < PREFIX_BYTES:
            raise MalformedRequest(f"the call brought no whole message, but {len(self.body)} bytes")
