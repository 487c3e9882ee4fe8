"""The calls behind `guard drain`: a running guard is told to drain, and asked how far it is until it is done."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from guard.errors import NotReadyError
from guard.serve.client_channel import ClientTls, channel_to, token_metadata
from guard.serve.grpc.wire.guard_pb2 import DrainRequest, DrainResponse

METHOD = "/guard.v1.Guard/Drain"
ANSWER_S = 2.0  # for one answer
POLL_S = 0.2
LATE_S = 1.0  # that a guard may need beyond the time that it named


def drain(address: str, *, tls: ClientTls | None = None, token_file: Path | None = None) -> str:
    """Let the guard whose admin listener is at `address` drain, and return what became of it once it accepts no more.

    This takes the guard's `drain_s`, and no more than that where something fails.

    Raises:
        ConfigError: a file for TLS, or that of the token, cannot be used.
        NotReadyError: no guard answers there, or it did not end its drain in time.
    """
    metadata = token_metadata(token_file)
    with channel_to(address, tls) as channel:
        start: Any = partial(channel.unary_unary(METHOD), metadata=metadata)
        try:
            found = ask(start, ANSWER_S)
        except grpc.RpcError as error:
            raise NotReadyError(
                f"nothing drains: the guard's admin listener at {address} answered {told_by(error)}; "
                "name the address of admin_listen"
            ) from error
        end = time.monotonic() + found.remaining_s + LATE_S
        while not found.closed:
            if time.monotonic() >= end:
                raise NotReadyError(
                    f"the guard at {address} still accepts connections {LATE_S:g} s after its drain_s; "
                    "SIGTERM ends it all the same"
                )
            time.sleep(min(POLL_S, max(0.01, found.remaining_s)))
            try:
                found = ask(start, max(0.1, min(ANSWER_S, end - time.monotonic())))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return f"the guard has ended while it drained; {so_far(found)}"
                raise NotReadyError(f"the guard at {address} stopped answering: {told_by(error)}") from error
    return f"drained: no connection is accepted any more; {so_far(found)}"


def ask(start: Any, timeout_s: float) -> DrainResponse:
    return DrainResponse.FromString(start(DrainRequest().SerializeToString(), timeout=timeout_s))


def told_by(error: Any) -> str:
    return f"{error.code().name}, {error.details()}"


def so_far(found: DrainResponse) -> str:
    return (
        f"clients told to connect elsewhere: {found.told}; connections still open: {found.connections}; "
        f"calls under way, which have grace_s after SIGTERM: {found.calls}"
    )
