"""For maintainers: an hour of mixed traffic at many times its speed: memory is flat, and every store within its bound.

    python -m tests.bench.hour              six minutes stand for an hour
    python -m tests.bench.hour --minutes 20
    python -m tests.bench.hour --quick      eight seconds do; memory may still grow a little

A real guard serves with all that remembers: audit log with inputs, sample, query memory that rejects, drift alarm, and
events to a sink that answers now and then. What it forgets by time it forgets as many times sooner; its bounds in bytes
and principals are small enough to be reached. Closed loops send single pictures of many clients, frames of cameras,
searches, attacks, and requests that cannot be inspected. Once a second memory, threads, open files and the size of each
store are read. Judged: memory of the last quarter against the second, each store at its fullest, threads and files, and
that each store was in use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from guard.bundle import Bundle
from guard.queries.memory import PRINCIPAL_QUERIES, SHARED_QUERIES
from guard.queries.recent import RecentQueries
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path
from tests.bench.sidecar import Guarded, resident_mib, serving, table, tiny
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request

HOUR_S = 3600.0
EXPIRY_S = 900.0  # of the query memory, and of the log here
PRINCIPALS, CLIENTS = 200, 300  # of which the memory holds so many, and that there are
STORE_BYTES = 1 << 17  # of the log, and of the sample
IN_FLIGHT = 8
SHARES = {"picture": 0.55, "camera": 0.2, "search": 0.1, "attack": 0.12, "no tensor": 0.03}
CAMERAS, SEARCHERS = 6, 4
MAX_RSS_FACTOR, QUICK_RSS_FACTOR = 1.02, 1.15
SINK_ANSWERS_SHARE = 0.5


class Traffic:
    """The requests of many clients, each with its token."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.generator = tokens, np.random.default_rng(0)
        self.pictures = tiny_bundle.clean(4000, seed=1)
        self.scenes, self.searched = tiny_bundle.clean(CAMERAS, seed=2), tiny_bundle.ordinary(SEARCHERS, seed=3)
        self.searches: Counter[int] = Counter()

    def next(self) -> tuple[str, bytes, str]:
        """A kind, a request of it, and the token of its client."""
        kind = str(self.generator.choice(list(SHARES), p=list(SHARES.values())))
        client = int(self.generator.integers(CAMERAS + SEARCHERS, len(self.tokens)))
        if kind == "no tensor":
            return kind, infer_request(np.zeros((1, 1, 5, 5), np.float32)).SerializeToString(), self.tokens[client]
        if kind == "camera":
            client = int(self.generator.integers(CAMERAS))
        elif kind == "search":
            client = CAMERAS + int(self.generator.integers(SEARCHERS))
        return kind, infer_request(self.image(kind, client)).SerializeToString(), self.tokens[client]

    def image(self, kind: str, client: int) -> NDArray[np.float32]:
        """An item [1, ...] of a client."""
        noise = self.generator.normal(0, 0.01, (1, *tiny_bundle.SHAPE))
        if kind == "picture":
            return self.pictures[self.generator.integers(len(self.pictures))][None]
        if kind == "camera":
            return (self.scenes[client] + noise).clip(0, 1).astype(np.float32)
        if kind == "attack":
            return (tiny_bundle.striped(1) + 10 * noise).clip(0, 1).astype(np.float32)
        item = self.searched[client - CAMERAS : client - CAMERAS + 1].copy()
        self.searches[client] += 1
        item.flat[self.searches[client] % item.size] += np.float32(0.02 + 0.0001 * (self.searches[client] % 1000))
        return item


@contextmanager
def sink() -> Iterator[str]:
    """A sink of events that answers every second one, and refuses the others."""
    chance = np.random.default_rng(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if chance.random() < SINK_ANSWERS_SHARE else 503)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Watched:
    """What was read of the guard while it served, by name and second."""

    guard: Guarded
    folder: Path
    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def read(self) -> None:
        """Read everything once."""
        process = Path(f"/proc/{self.guard.process.pid}")
        metrics = self.metrics()
        found = {
            "memory MiB": resident_mib(self.guard.process.pid),
            "threads": float(len(list((process / "task").iterdir()))),
            "open files": float(len(list((process / "fd").iterdir()))),
            "log bytes": bytes_of(self.folder.glob("audit-*.jsonl")),
            "sample bytes": bytes_of(self.folder.glob("sample/*/*.npz")),
            "query memory bytes": metrics["guard_query_memory_bytes"],
        }
        self.seconds.append(time.monotonic())
        for name, value in found.items():
            self.values.setdefault(name, []).append(value)

    def metrics(self) -> Counter[str]:
        """The sum of each metric over its labels."""
        text = urllib.request.urlopen(f"http://{self.guard.metrics}/metrics", timeout=20).read().decode()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value  # type: ignore[assignment]
        return found

    def quarter(self, name: str, number: int) -> float:
        """The median of a value in a quarter of the run, from 0."""
        length = (self.seconds[-1] - self.seconds[0]) / 4
        begin = self.seconds[0] + number * length
        pairs = zip(self.seconds, self.values[name], strict=True)
        return statistics.median(value for at, value in pairs if begin <= at <= begin + length)


def bytes_of(files: Any) -> float:
    """The bytes of files, without those that go meanwhile."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return float(total)


async def send(guard: Guarded, traffic: Traffic, seconds: float, watched: Watched) -> Counter[str]:
    """Send requests for a while, and read the guard once a second; returns how they ended, by kind."""
    ends: Counter[str] = Counter()
    end = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(guard.address) as channel:
        call: Any = channel.unary_unary(path("ModelInfer"))

        async def client() -> None:
            while time.monotonic() < end:
                kind, body, token = traffic.next()
                try:
                    await call(body, metadata=(("authorization", f"Bearer {token}"),), timeout=60)
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                ends[f"{kind}: {code}"] += 1

        async def watch() -> None:
            while time.monotonic() < end:
                await asyncio.to_thread(watched.read)
                await asyncio.sleep(min(1.0, seconds / 20))

        await asyncio.gather(watch(), *(client() for _ in range(IN_FLIGHT)))
    return ends


def bounds(bundle: Bundle) -> dict[str, float]:
    """The most that each store may hold."""
    tiles = int(np.prod(bundle.manifest.model.input.shape[1:]))
    rings = [RecentQueries(size, tiles, copy_weight=1.0).size_bytes for size in (PRINCIPAL_QUERIES, SHARED_QUERIES)]
    queries = PRINCIPALS * rings[0] + rings[1]
    return {"log bytes": STORE_BYTES, "sample bytes": STORE_BYTES, "query memory bytes": queries}


def judge(watched: Watched, most: Mapping[str, float], *, quick: bool) -> list[str]:
    """Print what was read, and return what is not as it should be."""
    rows, faults = [], []
    for name, values in watched.values.items():
        quarters = [watched.quarter(name, number) for number in range(4)]
        bound = most.get(name)
        rows.append(
            [name, *(f"{value:,.0f}" for value in (*quarters, max(values))), "" if bound is None else f"{bound:,.0f}"]
        )
        if bound is not None and max(values) > bound:
            faults.append(f"{name}: {max(values):,.0f}, more than {bound:,.0f}")
        if bound is not None and not quick and max(values) < bound / 2:
            faults.append(f"{name}: {max(values):,.0f} at most; the bound of {bound:,.0f} was not tried")
    print(table(("", "first quarter", "second", "third", "last", "most", "bound"), rows))
    growth = watched.quarter("memory MiB", 3) / watched.quarter("memory MiB", 1)
    print(f"memory, last quarter over second: {growth:.4f}")
    if growth > (QUICK_RSS_FACTOR if quick else MAX_RSS_FACTOR):
        faults.append(f"memory grew {growth:.3f} times")
    for name, slack in (("threads", 2), ("open files", 8)):
        if watched.quarter(name, 3) > watched.quarter(name, 1) + slack:
            faults.append(f"{name} grew")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=6.0)
    options = parser.parse_args()
    seconds = 8.0 if options.quick else 60 * options.minutes
    speed = HOUR_S / seconds
    tokens = [secrets.token_hex(16) for _ in range(CLIENTS)]
    with tempfile.TemporaryDirectory() as name, sink() as url:
        folder = Path(name)
        served = tiny(folder)
        (folder / "tokens").write_text("".join(f"c{n} {token}\n" for n, token in enumerate(tokens)), encoding="utf-8")
        (folder / "tokens").chmod(0o600)
        settings = (
            'principal_from = "bearer"',
            f'client_tokens = "{folder / "tokens"}"',
            'query_memory = "reject"',
            f'audit_dir = "{folder / "audit"}"',
            "audit_inputs = true",
            f"audit_max_bytes = {STORE_BYTES}",
            f"audit_max_age_s = {max(1.0, EXPIRY_S / speed)}",
            "sample_share = 0.5",
            f'events_sink = "{url}"',
        )
        (folder / "guard.toml").write_text("\n".join(settings) + "\n", encoding="utf-8")
        os.environ |= {"SPEED": str(speed), "PRINCIPALS": str(PRINCIPALS)}
        flags = ("--config", str(folder / "guard.toml"))
        with serving(*served, *flags, module="tests.bench.fast_guard") as guard:
            watched = Watched(guard, folder / "audit")
            print(f"{seconds:.0f} s stand for an hour: what is forgotten is forgotten {speed:.0f} times sooner")
            with asyncio.Runner(loop_factory=EventLoop) as runner:
                ends = runner.run(send(guard, Traffic(tokens), seconds, watched))
            written = {
                n: v for n, v in watched.metrics().items() if n.startswith("guard_audit_") and n.endswith("_total")
            }
        print(f"{ends.total()} requests: {dict(sorted(ends.items()))}")
        print(f"written and lost: {written}")
        faults = judge(watched, bounds(Bundle.open(served[0])), quick=options.quick)
    for fault in faults:
        print(f"FAULT {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
