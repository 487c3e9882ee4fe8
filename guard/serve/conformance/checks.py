"""The checks of a remote procedure: what a client and a model server must find as if no guard were between them.

Rule 1: what is compared with the model server is sent to it as it stands, or with a fault that it refuses.
Rule 2: what only a server that is asked to can show (statuses, trailers, a hanging call) is played by the wiretap.
Rule 3: a check that does not raise has passed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from guard.serve.conformance.procedures import Procedure, changed
from guard.serve.conformance.reply import Reply
from guard.serve.conformance.side_by_side import (
    LAST_S,
    OWN_OF_FAULTS,
    Differs,
    Inapplicable,
    SideBySide,
    refuse_own,
    told,
)
from guard.serve.conformance.wiretap import NAME, Script, Seen
from guard.serve.grpc.call_names import REQUEST_ID, TRACE_PARENT
from guard.serve.grpc.metadata import OURS, RESERVED, Metadata
from guard.serve.grpc.upstream import path
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse, ServerMetadataResponse

LARGE_BYTES = 5 * 2**20  # more than gRPC takes where nobody has set a limit
DEFAULT_LIMIT = "4194304"  # which stands in the text of its refusal
LONG_HEADER_BYTES = 3000
MORE_CALLS = 16  # to a server, where an answer through the guard differs
DEADLINE_S = 0.3
ROUNDED_S = 0.02  # by which gRPC may round the time up that it tells the next hop
LATE_S = 1.0  # by which a deadline may be told late on a busy machine
PLAYED = ModelInferResponse(model_name="played").SerializeToString()  # a text in field 1: lawful for most procedures
ANY_BYTES = bytes(range(256))
TEXTS = ("plain", "größer als 5 €, 数字", "100 % of\ttwo\nlines", "long " * 200, "")
UP_TEXT: Metadata = (
    ("x-conformance-text", "one"),
    ("x-conformance-text", "two, and three"),
    ("x-conformance-empty", ""),
    (TRACE_PARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)
UP_BINARY: Metadata = (("x-conformance-bin", ANY_BYTES), ("x-conformance-bin", b""), ("x-other-bin", b"\0"))
DOWN_TEXT: Metadata = (("x-down", "one"), ("x-down", "two"), ("x-down-empty", ""))
DOWN_BINARY: Metadata = (("x-down-bin", ANY_BYTES), ("x-down-bin", b"2"), ("grpc-status-details-bin", b"\x08\x0a"))
ADDED_UP = frozenset({NAME, REQUEST_ID, "user-agent", TRACE_PARENT, "tracestate"})

Check = Callable[[SideBySide, Procedure], Awaitable[None]]


@dataclass(frozen=True)
class Real:
    """A pair of replies to the same request, without what changes from call to call."""

    fault: str  # of the request; none: it is right
    direct: Reply
    through: Reply
    refusal: str | None  # the guard's reason, where it answered by itself


async def same_bytes(trial: SideBySide, procedure: Procedure) -> None:
    """The answer has the bytes of a direct one, and the model server gets the client's bytes."""
    first, _, through = await trial.pair(procedure, procedure.request)
    if first.code is grpc.StatusCode.UNIMPLEMENTED:
        raise Inapplicable("the server does not have it")
    if not first.ok:
        raise Inapplicable(f"the server itself answers {told(first)}; give --request FILE, one that it takes")
    refuse_own(through)
    if not through.ok:
        raise Differs(f"directly OK, through the guard {told(through)}")
    if through.messages != first.messages:
        await compare_messages(trial, procedure, first, through)
    if trial.wiretap is not None and not procedure.answered_by_guard:
        _, seen = await trial.scripted(procedure, Script((PLAYED,)))
        if seen.messages != [procedure.request]:
            lengths = [len(message) for message in seen.messages]
            raise Differs(f"{len(procedure.request)} bytes were sent, messages of {lengths} bytes came up")


async def compare_messages(
    trial: SideBySide, procedure: Procedure, first: Reply, through: Reply, **options: Any
) -> None:
    """Compare answers that differ in bytes. Raises Differs, Inapplicable.

    The server is asked again a few times, since some answer alike twice and otherwise the third time: maps have no
    order on the wire.
    """
    if procedure.response is ServerMetadataResponse and without_extensions(first) == without_extensions(through):
        return  # extensions that do not work through the guard are left out
    again = await trial.more(procedure, MORE_CALLS, **options)
    if any(reply.messages == through.messages for reply in again):
        return
    if all(reply.messages == first.messages for reply in again):
        sizes = [[len(message) for message in reply.messages] for reply in (first, through)]
        raise Differs(f"the answer has other bytes: messages of {sizes[0]} bytes directly, of {sizes[1]} through")
    wanted = parsed(procedure, first)
    if wanted is None or any(parsed(procedure, reply) != wanted for reply in again):
        raise Inapplicable("the server answers the same request otherwise each time")
    if parsed(procedure, through) != wanted:
        raise Differs("the answer is another message than a direct one")


def parsed(procedure: Procedure, reply: Reply) -> list[object] | None:
    """The messages of a reply, in which the order of map entries does not count; None where they cannot be read."""
    if procedure.response is None:
        return None
    try:
        return [procedure.response.FromString(message) for message in reply.messages]
    except DecodeError:
        return None


def without_extensions(reply: Reply) -> list[bytes]:
    found = []
    for message in reply.messages:
        metadata = ServerMetadataResponse.FromString(message)
        metadata.ClearField("extensions")
        found.append(metadata.SerializeToString())
    return found


async def same_status(trial: SideBySide, procedure: Procedure) -> None:
    """A call ends with the status of a direct one, for a right request, for faulty ones, and for any status."""
    tried = 0
    async for real in real_calls(trial, procedure):
        tried += 1
        if real.through.code is not real.direct.code and not (real.fault and real.refusal in OWN_OF_FAULTS):
            refuse_own(real.through)
            raise Differs(
                f"{real.fault or 'a right request'}: directly {told(real.direct)}, through {told(real.through)}"
            )
    for code in grpc.StatusCode:
        if not may_play(trial, procedure, tried):
            return
        reply, _ = await trial.scripted(
            procedure, Script((PLAYED,) if code is grpc.StatusCode.OK else (), code, "played")
        )
        if reply.code is not code:
            raise Differs(f"the model server ends a call with {code.name}, the client gets {told(reply)}")


async def same_details(trial: SideBySide, procedure: Procedure) -> None:
    """The text of a status is that of a direct call, whatever characters it has."""
    tried = 0
    async for real in real_calls(trial, procedure):
        if real.refusal is not None and not real.fault:
            refuse_own(real.through)
        if not real.direct.ok and real.refusal is None:
            tried += 1
            if real.through.details != real.direct.details:
                texts = f"directly {real.direct.details[:80]!r}, through {real.through.details[:80]!r}"
                raise Differs(f"{real.fault or 'a right request'}: {texts}")
    for text in TEXTS:
        if not may_play(trial, procedure, tried):
            return
        reply, _ = await trial.scripted(procedure, Script(code=grpc.StatusCode.ABORTED, details=text))
        if reply.details != text:
            raise Differs(f"the model server says {text[:80]!r}, the client gets {reply.details[:80]!r}")


async def same_trailers(trial: SideBySide, procedure: Procedure) -> None:
    """Text metadata passes both ways: headers up, headers and trailers down, each value in its order."""
    tried = await same_metadata(trial, procedure, binary=False)
    if may_play(trial, procedure, tried):
        await played_metadata(trial, procedure, UP_TEXT, DOWN_TEXT)


async def same_binary(trial: SideBySide, procedure: Procedure) -> None:
    """Binary metadata (`-bin`) passes both ways, every byte of it, and with the details of a status."""
    tried = await same_metadata(trial, procedure, binary=True)
    if may_play(trial, procedure, tried):
        await played_metadata(trial, procedure, UP_BINARY, DOWN_BINARY)


async def same_metadata(trial: SideBySide, procedure: Procedure, *, binary: bool) -> int:
    """Compare the metadata of real answers, and return how many answers had any. Raises Differs."""
    tried = 0
    async for real in real_calls(trial, procedure):
        if real.refusal is not None:
            continue
        for where, wanted, found in (
            ("headers", real.direct.initial, real.through.initial),
            ("trailers", real.direct.trailing, real.through.trailing),
        ):
            kept, came = of_kind(wanted, binary=binary), of_kind(found, binary=binary)
            tried += bool(kept)
            if kept != came:
                what = f"{real.fault or 'a right request'}: the {where}"
                raise Differs(f"{what} are {shown(kept)} directly, {shown(came)} through the guard")
    return tried


async def played_metadata(trial: SideBySide, procedure: Procedure, up: Metadata, down: Metadata) -> None:
    """Pass metadata through with an answer and with an error. Raises Differs, Inapplicable."""
    for code in (grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION):
        ok = code is grpc.StatusCode.OK
        initial = tuple((key, value) for key, value in down if not key.startswith(RESERVED)) if ok else ()
        trailing = initial if ok else down
        script = Script((PLAYED,) if ok else (), code, "" if ok else "played", initial, trailing)
        reply, seen = await trial.scripted(procedure, script, metadata=up)
        for where, wanted, found in (
            ("headers that came up", up, seen.metadata),
            ("headers that came down", initial, reply.initial),
            ("trailers", trailing, reply.trailing),
        ):
            check_values(where, wanted, found)
        if added := sorted(
            {key for key, _ in seen.metadata if not key.startswith((OURS, RESERVED))}
            - ADDED_UP
            - {key for key, _ in up}
        ):
            raise Differs(f"headers came up that no client sent: {', '.join(added)}")


def check_values(where: str, wanted: Metadata, found: Metadata) -> None:
    for key in dict(wanted):
        values, came = ([value for name, value in pairs if name == key] for pairs in (wanted, found))
        if not came or (came != values and key != TRACE_PARENT):  # a span of the guard's own may come between
            raise Differs(f"{where}: {key} was {values!r:.120} and is {came!r:.120}")


def of_kind(metadata: Metadata, *, binary: bool) -> dict[str, list[str | bytes]]:
    """The values of each key but the guard's own and gRPC's, binary ones or texts."""
    found: dict[str, list[str | bytes]] = {}
    for key, value in metadata:
        if not key.startswith((OURS, "grpc-encoding", "grpc-accept")) and key.endswith("-bin") == binary:
            found.setdefault(key, []).append(value)
    return found


def shown(metadata: Mapping[str, object]) -> str:
    return f"{metadata!r:.200}" if metadata else "none"


async def same_packed(trial: SideBySide, procedure: Procedure) -> None:
    """Messages that are packed with gzip or deflate say the same, in both directions."""
    for how in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        if procedure.withheld is None:
            first, _, through = await trial.pair(procedure, procedure.request, compression=how)
            if first.ok and through.ok and through.messages != first.messages:
                await compare_messages(trial, procedure, first, through, compression=how)
            elif first.ok and not through.ok:
                refuse_own(through)
                raise Differs(f"{how.name}: directly OK, through {told(through)}")
        if not may_play(trial, procedure, procedure.withheld is None and first.ok):
            continue
        script = Script((PLAYED,), compression=how)
        reply, seen = await trial.scripted(procedure, script, compression=how)
        if reply.messages != (PLAYED,) or seen.messages != [procedure.request]:
            raise Differs(f"{how.name}: request or answer is another after packing: the client got {told(reply)}")


async def same_deadline(trial: SideBySide, procedure: Procedure) -> None:
    """A client's deadline holds for the model server, which is told of its end; and no deadline is none."""
    began = time.monotonic()
    reply, seen = await trial.scripted(procedure, Script(hangs=True), timeout_s=DEADLINE_S)
    took = time.monotonic() - began
    if reply.code is not grpc.StatusCode.DEADLINE_EXCEEDED or took > DEADLINE_S + LATE_S:
        raise Differs(f"a deadline of {DEADLINE_S:g} s ended after {took:.2g} s with {told(reply)}")
    if seen.remaining_s > DEADLINE_S + ROUNDED_S:
        raise Differs(f"a client had {DEADLINE_S:g} s, the model server was given {seen.remaining_s:.3g} s")
    await until_over(seen, "the deadline")
    async with asyncio.timeout(trial.timeout_s):
        _, seen = await trial.scripted(procedure, Script((PLAYED,)), timeout_s=None)
    if not math.isinf(seen.remaining_s):
        raise Differs(f"a client set no deadline, the model server was given one of {seen.remaining_s:.3g} s")


async def same_cancel(trial: SideBySide, procedure: Procedure) -> None:
    """A client that leaves ends the call at the model server."""
    name, wiretap = trial.lay_ready(procedure, Script(hangs=True))
    call = trial.through.start(procedure.method, procedure.request, metadata=((NAME, name),), timeout_s=trial.timeout_s)
    end = time.monotonic() + trial.timeout_s
    while name not in wiretap.seen and not call.done() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    call.cancel()
    if name not in wiretap.seen:
        reply, _ = await trial.scripted(procedure, Script((PLAYED,)))  # raises for what is closed
        raise Differs(f"the call never came to the model server, another got {told(reply)}")
    await until_over(wiretap.seen[name], "its client left")


async def until_over(seen: Seen, event: str) -> None:
    """Wait until the model server is told of the end of a call. Raises Differs."""
    try:
        async with asyncio.timeout(LAST_S):
            await seen.over.wait()
    except TimeoutError:
        raise Differs(f"{LAST_S:g} s after {event} the call still ran at the model server") from None


async def same_limits(trial: SideBySide, procedure: Procedure) -> None:
    """Large messages and long headers pass where they pass directly."""
    infers = procedure.method == path("ModelInfer") and procedure.withheld is None
    if may_play(trial, procedure, infers):
        large = ModelInferResponse(model_name="x" * LARGE_BYTES).SerializeToString()
        long = (("x-long", "v" * LONG_HEADER_BYTES),)
        reply, seen = await trial.scripted(procedure, Script((large,), initial=long, trailing=long), metadata=long)
        if reply.messages != (large,):
            raise Differs(f"an answer of {len(large)} bytes is lost: the client got {told(reply)}")
        check_values("headers that came up", long, seen.metadata)
        check_values("headers that came down", long, reply.initial)
        check_values("trailers", long, reply.trailing)
    if infers:
        message = ModelInferRequest.FromString(procedure.request)
        message.parameters["conformance_padding"].string_param = "x" * LARGE_BYTES
        first, _, through = await trial.pair(procedure, changed(message))
        compare_large(first, through)


def compare_large(first: Reply, through: Reply) -> None:
    """Compare the ends of a large request. Raises Differs, Inapplicable."""
    if through.code is first.code:
        return
    if through.code is grpc.StatusCode.RESOURCE_EXHAUSTED and DEFAULT_LIMIT not in through.details:
        raise Inapplicable(f"the guard's own limit (max_message_bytes) is below {LARGE_BYTES} bytes: {told(through)}")
    refuse_own(through)
    raise Differs(f"a request of {LARGE_BYTES} bytes: directly {told(first)}, through {told(through)}")


async def real_calls(trial: SideBySide, procedure: Procedure) -> AsyncIterator[Real]:
    """Yield the replies to the right request (fault "") and to each faulty one: directly, and through the guard."""
    if procedure.withheld is not None:
        return
    for fault, request in (("", procedure.request), *procedure.faulty.items()):
        first, second, through = await trial.pair(procedure, request)
        if procedure.answered_by_guard and first.code is grpc.StatusCode.UNIMPLEMENTED:
            raise Inapplicable("the server does not have it, the guard adds it")
        same = (through.refusal, through.details) == (first.refusal, first.details)  # the server's own, passed on
        refusal = None if same else through.refusal
        yield Real(fault, *steady(first, second, through), refusal)


def steady(first: Reply, second: Reply, through: Reply) -> tuple[Reply, Reply]:
    """The first and the last reply without what two direct ones do not have in common, such as dates."""
    changing = {key for key, _ in set(first.initial + first.trailing) ^ set(second.initial + second.trailing)}

    def kept(reply: Reply) -> Reply:
        initial, trailing = (
            tuple((key, value) for key, value in metadata if key not in changing)
            for metadata in (reply.initial, reply.trailing)
        )
        details = reply.details if first.details == second.details else ""
        return replace(reply, initial=initial, trailing=trailing, details=details)

    return kept(first), kept(through)


def may_play(trial: SideBySide, procedure: Procedure, tried: int) -> bool:
    """Whether answers are to be played; False where they cannot, but `tried` real ones were compared."""
    return not tried or (trial.wiretap is not None and not procedure.answered_by_guard)


CHECKS: Mapping[str, Check] = {
    "bytes": same_bytes,
    "status": same_status,
    "details": same_details,
    "trailers": same_trailers,
    "bin": same_binary,
    "compression": same_packed,
    "deadline": same_deadline,
    "cancel": same_cancel,
    "limits": same_limits,
}
