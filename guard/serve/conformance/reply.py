"""A call by gRPC as its caller sees it: bytes up, and all that comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from guard.errors import ConfigError
from guard.serve.client_channel import ClientTls, credentials_of
from guard.serve.grpc.call import DETAILS, DOMAIN
from guard.serve.grpc.metadata import Metadata
from guard.target import WANTED, parse_target

MAX_REPLY_MESSAGES = 64  # of a stream; what comes after them is not waited for


@dataclass(frozen=True)
class Reply:
    """The end of one call: its status, its messages and its metadata."""

    code: grpc.StatusCode
    details: str
    messages: tuple[bytes, ...]
    initial: Metadata
    trailing: Metadata

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @property
    def refusal(self) -> str | None:
        """The reason that a guard gives where it answered by itself; None where the answer is another's."""
        for key, value in self.trailing:
            if key == DETAILS and isinstance(value, bytes):
                return reason_in(value)
        return None


def reason_in(details: bytes) -> str | None:
    """The reason in a google.rpc.Status, if it is a guard's."""
    with suppress(DecodeError):
        for detail in Status.FromString(details).details:
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return str(info.reason)
    return None


@dataclass(frozen=True)
class Caller:
    """A channel to one server, for calls of any method."""

    address: str
    channel: grpc.aio.Channel

    def start(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata = (),
        timeout_s: float | None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call of one message, to be read from: a unary call and a stream look alike on the wire.

        The message goes out in one step with the headers: written by itself to a call that is refused at once, it would
        end that call with a fault of the library's instead of its status.
        """
        begin: Any = self.channel.unary_stream(method)
        return begin(request, metadata=grpc.aio.Metadata(*metadata), timeout=timeout_s, compression=compression)

    async def call(self, method: str, request: bytes, **options: Any) -> Reply:
        """Make a call of one message, and wait for its end."""
        call = self.start(method, request, **options)
        messages: list[bytes] = []
        with suppress(grpc.aio.AioRpcError):  # its end is told below
            while len(messages) < MAX_REPLY_MESSAGES and (came := await call.read()) is not grpc.aio.EOF:
                messages.append(came)
        if len(messages) == MAX_REPLY_MESSAGES:
            call.cancel()
        return Reply(
            await call.code(),
            await call.details() or "",
            tuple(messages),
            pairs(await call.initial_metadata()),
            pairs(await call.trailing_metadata()),
        )


def pairs(metadata: Any) -> Metadata:
    return tuple((str(key), value) for key, value in metadata or ())


@asynccontextmanager
async def calling(address: str, tls: ClientTls | None = None) -> AsyncIterator[Caller]:
    """Open a channel to a server, for messages of any size.

    Raises:
        ConfigError: the server has no address, or the files for TLS are not what is wanted.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    target = parse_target(address)
    if target is None:
        raise ConfigError(f"the server {address!r} is no target; wanted {WANTED}")
    if tls is None:
        opened = grpc.aio.insecure_channel(target.text, options=options)
    else:
        credentials, named = credentials_of(tls)
        opened = grpc.aio.secure_channel(target.text, credentials, options=[*options, *named])
    async with opened as channel:
        yield Caller(address, channel)
