"""For maintainers: the processor time of a call that is never answered, and how much of it is gRPC's own.

    python -m tests.bench.lost_calls [--rate 2000]

Calls with 50 ms come over eight connections at a fixed rate, to a server alone on its core. "untaken": nobody asks the
core for them, so no Python runs, and they end at their deadline. "waiting": the guard's gate takes them and admits
none. "refused": it refuses each. "answered": a plain handler answers each with what it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from guard.serve.admission import Admission
from guard.serve.client_queues import ClientQueues
from guard.serve.event_loop import EventLoop
from guard.serve.grpc import gatekeeper, listener
from guard.serve.grpc.acceptor import Acceptor
from guard.serve.grpc.connection_limits import ConnectionLimits
from guard.serve.grpc.gate import InferGate
from guard.serve.grpc.gatekeeper import Gate, Moments, Wall
from tests.bench.sidecar import ROOT, table

KINDS = ("untaken", "waiting", "refused", "answered")
METHOD = "/a/b"
CHANNELS = 8
DEADLINE_S = 0.05
BODY = b"x" * 400
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")  # a second


class Untaken(Acceptor):
    """A server that never asks the core for a call."""

    def accept(self, method: bytes | None, begin: Any) -> None:
        """Ask for nothing."""


class Closed(InferGate):
    """A gate that admits no call; it refuses all of them, or lets all of them wait."""

    def enter(self, moments: Moments) -> None:
        return None

    def is_hopeless(self, moments: Moments, ahead: int) -> bool:
        return self.budget_s > 1.0


async def serve(kind: str) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return request

    gate = Closed(ClientQueues([Admission()]), 2.0 if kind == "refused" else 1.0, lambda call: None)
    gates: dict[str, Gate] = {METHOD: gate} if kind in ("waiting", "refused") else {}
    gatekeeper.REFUSALS_PER_S = gatekeeper.MAX_SAVED_REFUSALS = 1e9
    if kind == "untaken":
        listener.Acceptor = Untaken  # type: ignore[misc]
    methods = {METHOD: grpc.unary_unary_rpc_method_handler(answer)}
    async with listener.listening(
        "127.0.0.1:0",
        methods,
        Wall(lambda context: gate.refuse(context)),
        max_message_bytes=2**20,
        limits=ConnectionLimits(64, 1024),
        gates=gates,
    ) as opened:
        print(opened.address, flush=True)
        await asyncio.Event().wait()


async def price(address: str, process: int, rate: float, seconds: float) -> tuple[float, Counter[str]]:
    """The microseconds of processor time that the server spends on a call, and how the calls ended."""
    ends: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(CHANNELS)
        ]
        calls = [channel.unary_unary(METHOD) for channel in channels]

        async def request(number: int, timeout_s: float = DEADLINE_S) -> None:
            try:
                await calls[number % CHANNELS](BODY, timeout=timeout_s)
                ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1

        await asyncio.gather(*(request(number, 0.5) for number in range(CHANNELS)))  # connections
        ends.clear()
        before_s, began = cpu_s(process), time.monotonic()
        sent: list[asyncio.Task[None]] = []
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate) - len(sent)
            sent += [asyncio.create_task(request(len(sent) + n)) for n in range(due)]
            await asyncio.sleep(0.002)
        await asyncio.gather(*sent)
        return 1e6 * (cpu_s(process) - before_s) / len(sent), ends


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000.0, help="calls a second")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(serve(options.serve))
    cpus = sorted(os.sched_getaffinity(0))
    rows = []
    for kind in KINDS:
        server = subprocess.Popen(
            ["taskset", "-c", str(cpus[0]), sys.executable, "-m", "tests.bench.lost_calls", "--serve", kind],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        os.sched_setaffinity(0, {cpus[-1]})
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            address = server.stdout.readline().strip()
            cost_us, ends = runner.run(price(address, server.pid, options.rate, options.seconds))
        rows.append((kind, f"{cost_us:.0f}", ", ".join(f"{name} {count}" for name, count in ends.most_common())))
        os.sched_setaffinity(0, set(cpus))
        server.kill()
        server.wait()
    print(table(["call", "CPU, us", "ended"], rows))


if __name__ == "__main__":
    main()
