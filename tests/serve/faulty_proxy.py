"""A proxy with one planted fault, as careless proxies have them: what a conformance run has to find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from guard.serve.conformance.conformance import TrialOptions
from guard.serve.conformance.reply import Caller, calling, pairs
from guard.serve.conformance.wiretap import passed_on

Pairs = Sequence[tuple[str, str | bytes]]
INVENTED_S = 30.0
FAULTS = {  # fault -> the check of ModelInfer that finds it
    "none": "",
    "drops trailers": "trailers",
    "drops headers that come down": "trailers",
    "drops headers that go up": "trailers",
    "keeps one value of a header": "trailers",
    "sorts values": "trailers",
    "adds a header": "trailers",
    "drops binary trailers": "bin",
    "drops binary headers that go up": "bin",
    "drops the details of a status": "bin",
    "alters a status": "status",
    "answers NOT_FOUND as UNKNOWN": "status",
    "prefixes the text of a status": "details",
    "cuts the text of a status": "details",
    "speaks ASCII": "details",
    "alters an answer": "bytes",
    "alters a request": "bytes",
    "refuses packed messages": "compression",
    "invents a deadline": "deadline",
    "forgets the deadline": "deadline",
    "never cancels": "cancel",
    "takes 4 MiB": "limits",
    "answers with 4 MiB": "limits",
    "cuts long headers": "limits",
}


@dataclass
class FaultyProxy(grpc.GenericRpcHandler):
    """An opaque proxy of any method with one fault."""

    upstream: Caller
    fault: str

    def service(self, details: Any) -> Any:
        async def handler(requests: Any, context: Any) -> None:
            await self.handle(str(details.method), context)

        return grpc.stream_stream_rpc_method_handler(handler)

    async def handle(self, method: str, context: Any) -> None:
        request = await context.read()
        if self.fault == "alters a request":
            request += b"\x1a\x01x"  # an id, once more
        work = asyncio.create_task(self.ask(method, request, context))
        try:
            await asyncio.shield(work)
        finally:
            if self.fault != "never cancels":
                work.cancel()

    async def ask(self, method: str, request: bytes, context: Any) -> None:
        left = context.time_remaining()
        timeout_s = INVENTED_S if left is None and self.fault == "invents a deadline" else left
        call = self.upstream.start(
            method,
            request,
            metadata=tuple(self.upwards(passed_on(pairs(context.invocation_metadata())))),
            timeout_s=None if self.fault == "forgets the deadline" else timeout_s,
        )
        try:
            initial = self.downwards(passed_on(pairs(await call.initial_metadata())))
            if initial and self.fault != "drops headers that come down":
                await context.send_initial_metadata(tuple(initial))
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    await context.write(message + b"\x1a\x01x" if self.fault == "alters an answer" else message)
            except grpc.aio.AioRpcError:
                pass
            code, trailing = await call.code(), tuple(self.downwards(passed_on(pairs(await call.trailing_metadata()))))
            if code is grpc.StatusCode.OK:
                context.set_trailing_metadata(trailing)
            else:
                await context.abort(self.status(code), self.text(await call.details() or ""), trailing)
        finally:
            call.cancel()

    def upwards(self, metadata: Pairs) -> Pairs:
        match self.fault:
            case "drops headers that go up":
                return [(key, value) for key, value in metadata if key.endswith("-bin") or "guard" in key]
            case "drops binary headers that go up":
                return [(key, value) for key, value in metadata if not key.endswith("-bin")]
            case "adds a header":
                return [*metadata, ("x-forwarded-for", "127.0.0.1")]
        return self.both_ways(metadata)

    def downwards(self, metadata: Pairs) -> Pairs:
        match self.fault:
            case "drops trailers":
                return []
            case "drops binary trailers":
                return [(key, value) for key, value in metadata if not key.endswith("-bin")]
            case "drops the details of a status":
                return [(key, value) for key, value in metadata if not key.startswith("grpc-")]
        return self.both_ways(metadata)

    def both_ways(self, metadata: Pairs) -> Pairs:
        match self.fault:
            case "keeps one value of a header":
                return list(dict(metadata).items())
            case "sorts values":
                return sorted(metadata, key=lambda pair: (pair[0], str(pair[1])), reverse=True)
            case "cuts long headers":
                return [(key, value[:1000]) for key, value in metadata]
        return metadata

    def status(self, code: grpc.StatusCode) -> grpc.StatusCode:
        if self.fault == "alters a status" and code is grpc.StatusCode.DATA_LOSS:
            return grpc.StatusCode.INTERNAL
        lost = self.fault == "answers NOT_FOUND as UNKNOWN" and code is grpc.StatusCode.NOT_FOUND
        return grpc.StatusCode.UNKNOWN if lost else code

    def text(self, details: str) -> str:
        match self.fault:
            case "prefixes the text of a status":
                return f"upstream: {details}"
            case "cuts the text of a status":
                return details[:256]
            case "speaks ASCII":
                return details.encode("ascii", "replace").decode()
        return details


@asynccontextmanager
async def faulty(address: str, fault: str) -> AsyncIterator[str]:
    """The proxy in front of a server, within the block; yields its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *limits(fault)])
    async with calling(address) as upstream:
        server.add_generic_rpc_handlers([FaultyProxy(upstream, fault)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


def limits(fault: str) -> list[tuple[str, int]]:
    return [
        *([] if fault == "takes 4 MiB" else [("grpc.max_receive_message_length", -1)]),
        *([("grpc.max_send_message_length", 2**22)] if fault == "answers with 4 MiB" else []),
        *([("grpc.compression_enabled_algorithms_bitset", 1)] if fault == "refuses packed messages" else []),
    ]


@asynccontextmanager
async def started(fault: str, upstream: str, options: TrialOptions) -> AsyncIterator[tuple[str, str]]:
    """The proxy where a conformance run would start a guard."""
    async with faulty(upstream, fault) as address:
        yield address, f"a proxy that {fault}"
