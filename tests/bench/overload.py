"""For maintainers: what a guard still answers when it is offered more than it can.

    python -m tests.bench.overload                                    the tiny bundle of the tests
    python -m tests.bench.overload --bundle demo/bundle --model demo/model.onnx
    python -m tests.bench.overload … --checkout OTHER                 the guard of another checkout: before and after
    python -m tests.bench.overload --echo-ms 1.4                      a plain grpc.aio server that works so long

Guard and model server share one CPU, the clients have another. The capacity for a deadline is the most that closed
loops of 4 to 64 calls get answered, as long as 95 % of the answers come within that deadline. It is measured again
before and after each cell, since machines are not as fast all the time. Calls come at one, two and four times that
rate, whatever becomes of those before; a client whose call is refused tries again at
once, up to `--retries` times within its deadline. Goodput counts answered requests, not calls. The books are held
against what was sent: they must account for every call that a client did not give up before it was seen. Where clients
wait for a second and more comes than can be answered, each cell's goodput must be at least `MIN_GOODPUT_SHARE` of the
capacity measured around it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from guard.bundle import Bundle
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path
from tests.bench.sidecar import ROOT, Guarded, request_for, serving, table, tiny

DEADLINES_S = (0.05, 0.25, 1.0)
TIMES = (1, 2, 4)
CHANNELS = 8
IN_FLIGHT = (4, 8, 16, 32, 64)
AGAIN = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})
JUDGED_S = DEADLINES_S[-1]  # the deadline for which goodput is judged: shorter ones depend on how busy the machine is
MIN_GOODPUT_SHARE = 0.5  # of the capacity; 13 to 37 % were measured of a guard that began every call that came
ECHO_BYTES = 400  # about as many as the demo's request has
HOPELESS_S = 0.002  # less than that left: nobody tries again


@dataclass
class Clients:
    """Calls to one guard over several connections."""

    calls: list[Any]
    body: bytes
    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of requests
    answered: int = 0

    async def closed(self, in_flight: int, seconds: float) -> tuple[float, float]:
        """Answers a second, and the time within which 95 % of them came."""
        took: list[float] = []
        end = time.monotonic() + seconds

        async def client(number: int) -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                self.sent += 1
                try:
                    await self.calls[number % CHANNELS](self.body, timeout=30)
                except grpc.aio.AioRpcError:
                    continue
                if (now := time.monotonic()) < end:
                    took.append(now - began)

        await asyncio.gather(*(client(number) for number in range(in_flight)))
        took.sort()
        return len(took) / seconds, took[int(0.95 * len(took))] if took else float("inf")

    async def open(self, rate: float, deadline_s: float, seconds: float, retries: int) -> float:
        """Requests answered a second, where `rate` come in each."""
        self.statuses, self.answered = Counter(), 0
        began = time.monotonic()
        requests: list[asyncio.Task[None]] = []
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate) - len(requests)
            requests += [asyncio.create_task(self.request(len(requests) + n, deadline_s, retries)) for n in range(due)]
            await asyncio.sleep(0.002)
        await asyncio.gather(*requests)
        return self.answered / seconds

    async def request(self, number: int, deadline_s: float, retries: int) -> None:
        end, last = time.monotonic() + deadline_s, "NEVER_SENT"
        for attempt in range(1 + retries):
            left = end - time.monotonic()
            if left < HOPELESS_S:
                break
            self.sent += 1
            try:
                await self.calls[(number + attempt) % CHANNELS](self.body, timeout=left)
            except grpc.aio.AioRpcError as error:
                last = error.code().name
                if error.code() not in AGAIN:
                    break
                continue
            last = "OK"
            self.answered += 1
            break
        self.statuses[last] += 1


async def measure(guarded: Guarded, body: bytes, options: argparse.Namespace) -> bool:
    """Print the tables of one server, and return whether it held what is judged; an echo keeps no books."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(guarded.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(CHANNELS)
        ]
        clients = Clients([channel.unary_unary(path("ModelInfer")) for channel in channels], body)
        await clients.closed(4, 0.5)  # connections, first batches
        loops = [(count, *await clients.closed(count, options.seconds / 2)) for count in options.in_flight]
        print(
            table(
                ["in flight", "answers/s", "95 % within"], [(n, f"{r:.0f}", f"{s * 1e3:.0f} ms") for n, r, s in loops]
            )
        )
        rows, least = [], float("inf")
        for deadline_s in options.deadlines:
            fitting = [(rate, count) for count, rate, within_s in loops if within_s <= deadline_s]
            _, count = max(fitting, default=(0.0, loops[0][0]))
            for times in options.times:
                before, _ = await clients.closed(count, options.seconds / 4)
                began = time.monotonic(), time.process_time()
                goodput = await clients.open(times * before, deadline_s, options.seconds, options.retries)
                busy = (time.process_time() - began[1]) / (time.monotonic() - began[0])
                await asyncio.sleep(0.5)
                after, _ = await clients.closed(count, options.seconds / 4)
                capacity = (before + after) / 2
                ended = ", ".join(f"{name} {count}" for name, count in clients.statuses.most_common())
                offered = (f"{deadline_s * 1e3:.0f} ms", f"{capacity:.0f}", f"{times} x")
                rows.append((*offered, f"{goodput:.0f}", f"{goodput / capacity:.0%}", f"{busy:.0%}", ended))
                if deadline_s == JUDGED_S and times > 1:
                    least = min(least, goodput / capacity)
                print(".", end="", flush=True)
    heads = ["deadline", "capacity/s", "offered", "goodput/s", "of capacity", "clients' CPU", "requests ended"]
    print("\n" + table(heads, rows))
    if options.echo_ms is not None:
        return True
    books = guarded.books()
    unseen = clients.sent - sum(books.values())
    cut_off = sum(row[-1].count("CANCELLED") for row in rows)
    print(f"\ncalls sent {clients.sent}, in the books {dict(books)}; ended by their clients, unseen: {unseen}")
    print(f"least goodput at {JUDGED_S:g} s: {least:.0%} of capacity, wanted {MIN_GOODPUT_SHARE:.0%}")
    return 0 <= unseen <= MOST_UNSEEN * clients.sent and not cut_off and least >= MIN_GOODPUT_SHARE


QUICK_TRIES = 3  # of the short form: among tests on a busy machine the best one counts
MOST_UNSEEN = 0.25  # of all calls: a client's own deadline may pass while a call is on its way


def a_guard(options: argparse.Namespace, cpus: set[int], stack: ExitStack) -> tuple[Guarded, bytes]:
    """Start the guard before its model server, and return a request for it."""
    if options.bundle is None:
        bundle, model, name = tiny(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    else:
        bundle, model, name = options.bundle, options.model, ""
    opened = Bundle.open(bundle)
    name = name or opened.manifest.model.name
    guarded = serving(bundle.resolve(), model.resolve(), name, checkout=options.checkout, cpus=cpus)
    return stack.enter_context(guarded), request_for(opened)


@contextmanager
def echo(options: argparse.Namespace, cpus: set[int]) -> Iterator[Guarded]:
    """Start the plain server of `echo_server`."""
    flags = ["--work-ms", str(options.echo_ms), "--inside", str(options.echo_inside)]
    process = subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cpus)), sys.executable, "-m", "tests.bench.echo_server", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        yield Guarded(json.loads(process.stderr.readline())["inference"], "", process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--model", type=Path, help="the bundle's model as .onnx")
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--echo-ms", type=float, help="no guard: a plain server that works so long for an answer")
    parser.add_argument("--echo-inside", type=int, default=16, help="and refuses calls beyond so many")
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each cell")
    parser.add_argument(
        "--deadlines", type=float, nargs="+", default=DEADLINES_S, metavar="S", help="of requests, seconds"
    )
    parser.add_argument("--times", type=int, nargs="+", default=TIMES, help="what is offered, in capacities")
    parser.add_argument("--quick", action="store_true", help="what is judged alone, short cells: seconds")
    options = parser.parse_args(arguments)
    options.in_flight = IN_FLIGHT
    if options.quick:
        options.deadlines, options.times, options.in_flight, options.seconds = (JUDGED_S,), (2, 4), (8, 32), 1.5
    return 0 if any(run(options) for _ in range(QUICK_TRIES if options.quick else 1)) else 1


def run(options: argparse.Namespace) -> bool:
    """Measure everything once, with servers of its own; return whether it was as it should be."""
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, set(cpus))
        if options.echo_ms is not None:
            guarded, body = stack.enter_context(echo(options, {cpus[0]})), b"x" * ECHO_BYTES
        else:
            guarded, body = a_guard(options, {cpus[0]}, stack)
        os.sched_setaffinity(0, {cpus[-1]})
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            return runner.run(measure(guarded, body, options))


if __name__ == "__main__":
    sys.exit(main())
