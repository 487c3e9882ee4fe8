"""For maintainers: a plain grpc.aio server to hold the guard's overload against, with neither guard nor model in it.

    python -m tests.bench.overload --echo-ms 1.4

It spends `work_ms` of processor time on a thread of its own for each answer, answers with what it was sent, and refuses
at once every call beyond `inside`. What the library itself costs is all that it loses under overload.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import grpc
import grpc.aio

from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path

BLOCK = bytes(16 * 1024)  # hashed at a time, without the interpreter's lock


def burn(seconds: float) -> None:
    """Spend processor time, of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sha256(BLOCK)


class Echo(grpc.GenericRpcHandler):
    """An answer to every call after some work, with at most `most` calls inside."""

    def __init__(self, work_s: float, most: int) -> None:
        self.work_s, self.most, self.inside = work_s, most, 0
        self.thread = ThreadPoolExecutor(1)

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.answer) if details.method == path("ModelInfer") else None

    async def answer(self, request: bytes, context: Any) -> bytes:
        if self.inside >= self.most:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        self.inside += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self.thread, burn, self.work_s)
        finally:
            self.inside -= 1
        return request


async def serve(work_s: float, most: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Echo(work_s, most)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "listening", "inference": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work-ms", type=float, required=True)
    parser.add_argument("--inside", type=int, required=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve(options.work_ms / 1e3, options.inside))
