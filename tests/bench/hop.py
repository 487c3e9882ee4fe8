"""For maintainers: what the hop through the guard costs, beside other hops and none.

    python -m tests.bench.hop            (`make bench`)
    python -m tests.bench.hop --quick    under a minute: two rounds, one size
    python -m tests.bench.hop --checkout OTHER   beside the guards of another checkout: before and after

Direct; an opaque proxy of the same runtime (grpc.aio and uvloop, bytes through); Envoy, where its side environment is
built (`python -m tests.side envoy`); the guard in mode `off`; and in `enforce` with the detectors of the preset `fast`
on a ResNet-20. All are up at once, take turns in an order that is drawn anew each round, and answer from one model
server that computes nothing. A figure is the median of rounds. CPU is a process' own, of all its threads, by the
kernel's account, so that other work on the machine disturbs it less than it does the times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from guard.bundle import Bundle
from guard.runtime import Runtime
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path
from tests.bench.networks import random_bundle
from tests.bench.sidecar import ROOT, request_for, started, table, until_listening
from tests.serve.envoy.envoy_process import ADMIN, clients_of
from tests.side import StaleError, shelf

SIZES = {"12 KB": (3, 32, 32), "602 KB": (3, 224, 224)}
IN_FLIGHT = (1, 8, 32)
ROUNDS, QUICK_ROUNDS = 9, 2
ROUND_S = {"12 KB": 0.8, "602 KB": 1.6}
WARM_CALLS = 30
LIMIT_BYTES = 4 * 2**20
ENVOY_START_S = 30.0
FAST_ONLY = ("lid",)  # of `standard`'s plain pass, what `fast` does not have
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ENVOY = """
static_resources:
  listeners:
  - name: clients
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/HTTP_CONNECTION_MANAGER
          stat_prefix: clients
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - name: models
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: model_server, timeout: 0s}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: model_server
    load_assignment:
      cluster_name: model_server
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: PORT}}}}]}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
"""


@dataclass(frozen=True)
class Burst:
    """Calls of one turn: how long each took, and the processor time of each process for a call, in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    hop_ms: float
    model_ms: float
    client_ms: float


@dataclass
class Hop:
    """A way to the model server."""

    name: str
    address: str
    process: int | None  # of the hop; None: there is none
    bursts: dict[int, list[Burst]] = field(default_factory=dict)  # by calls in flight

    def median(self, in_flight: int, what: str) -> float:
        return statistics.median(getattr(burst, what) for burst in self.bursts[in_flight])


def cpu_s(process: int | None) -> float:
    """The processor time of all threads of a process, by the scheduler's account in nanoseconds."""
    if process is None:
        return 0.0
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text("ascii").split()[0]) for file in files) / 1e9


async def burst(call: Any, body: bytes, in_flight: int, seconds: float, hop: int | None, model: int) -> Burst:
    """Keep so many calls in flight for so long."""
    took: list[float] = []
    before = cpu_s(hop), cpu_s(model), time.process_time()
    began = time.monotonic()
    end = began + seconds

    async def client() -> None:
        while (start := time.monotonic()) < end:
            await call(body)
            took.append(time.monotonic() - start)

    await asyncio.gather(*(client() for _ in range(in_flight)))
    passed = time.monotonic() - began
    after = cpu_s(hop), cpu_s(model), time.process_time()
    took.sort()
    costs = [1e3 * (last - first) / len(took) for first, last in zip(before, after, strict=True)]
    return Burst(
        len(took) / passed, 1e3 * took[len(took) // 2], 1e3 * took[min(len(took) - 1, int(0.99 * len(took)))], *costs
    )


async def race(hops: Sequence[Hop], body: bytes, model: int, options: argparse.Namespace, seconds: float) -> None:
    """Let all hops take turns, in an order drawn anew each round."""
    order = random.Random(0)
    open_options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with ExitChannels() as channels:
        calls: dict[str, Any] = {}
        for hop in hops:
            channel = await channels.enter(grpc.aio.insecure_channel(hop.address, options=open_options))
            calls[hop.name] = channel.unary_unary(path("ModelInfer"))
            for _ in range(WARM_CALLS):
                await calls[hop.name](body)
        for _ in range(options.rounds):
            for in_flight in options.in_flight:
                for hop in order.sample(list(hops), len(hops)):
                    found = await burst(calls[hop.name], body, in_flight, seconds, hop.process, model)
                    hop.bursts.setdefault(in_flight, []).append(found)


class ExitChannels:
    """The open channels of a race, which are closed at its end."""

    def __init__(self) -> None:
        self.channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> ExitChannels:
        return self

    async def enter(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self.channels.append(channel)
        return channel

    async def __aexit__(self, *_: object) -> None:
        for channel in self.channels:
            await channel.close()


@contextmanager
def plain_server(role: str, *flags: str) -> Iterator[tuple[int, str]]:
    """A server of tests.bench.hop_servers as a process; yields its number and its address."""
    with until_listening("tests.bench.hop_servers", role, *flags) as (process, lines):
        yield process.pid, lines["inference"]


@contextmanager
def envoy(folder: Path, upstream: str) -> Iterator[tuple[int, str]]:
    """Envoy on one worker, passing everything on. Raises StaleError where its side environment is not built."""
    program = shelf("envoy") / "envoy" / "_bin" / "envoy"
    file, admin = folder / "hop.yaml", folder / "hop-admin"
    file.write_text(
        ADMIN + ENVOY.replace("HTTP_CONNECTION_MANAGER", MANAGER).replace("PORT", upstream.rpartition(":")[2]),
        encoding="utf-8",
    )
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    command = [program, "--config-path", file, "--admin-address-path", admin, *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + ENVOY_START_S
            while (address := clients_of(admin)) is None:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("Envoy did not start")
                time.sleep(0.05)
            yield process.pid, address
        finally:
            process.kill()


def fast_bundle(folder: Path, size: str, model: str) -> Bundle:
    """A bundle with the detectors of `fast`, fitted on random images: it costs what a trained one costs."""
    name = f"fast-{size.replace(' ', '')}"
    return random_bundle(model, folder / name, shape=SIZES[size], programs=("screen",), without=FAST_ONLY)


def program_ms(bundle: Bundle, calls: int) -> float:
    """The processor time of one item's reading in this process, on one thread."""
    runtime, item = Runtime.open(bundle, threads=1), bundle.samples.images[:1]
    took = []
    for _ in range(calls):
        began = time.thread_time()
        runtime.read(item)
        took.append(time.thread_time() - began)
    return 1e3 * statistics.median(took)


def measure(size: str, folder: Path, options: argparse.Namespace) -> None:
    bundle = fast_bundle(folder, size, options.model)
    body = request_for(bundle)
    shared = ["--bundle", str(bundle.path), "--threads", "1"]
    settings = folder / "guard.toml"
    settings.write_text(f"max_message_bytes = {LIMIT_BYTES}\n", encoding="utf-8")
    with ExitStack() as stack:
        model, upstream = stack.enter_context(plain_server("model"))
        hops = [Hop("direct", upstream, None)]
        hops.append(Hop("opaque proxy", *reversed(stack.enter_context(plain_server("proxy", "--upstream", upstream)))))
        try:
            hops.append(Hop("Envoy", *reversed(stack.enter_context(envoy(folder, upstream)))))
        except StaleError as error:
            print(f"Envoy is left out: {error}")
        for name, checkout in [("guard", ROOT), *(("other", one) for one in options.checkout)]:
            for mode in ("off", "enforce"):
                flags = (*shared, "--upstream", upstream, "--mode", mode, "--config", str(settings))
                process, lines = stack.enter_context(started(checkout, None, "serve", *flags))
                hops.append(Hop(f"{name}, {mode}", lines["inference"], process.pid))
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(race(hops, body, model, options, options.seconds or ROUND_S[size]))
    show(size, len(body), hops, options, program_ms(bundle, 20 if options.quick else 200))


def show(size: str, size_bytes: int, hops: Sequence[Hop], options: argparse.Namespace, program: float) -> None:
    columns = ("per_second", "p50_ms", "p99_ms", "hop_ms", "model_ms", "client_ms")
    for in_flight in options.in_flight:
        by_name = {hop.name: hop for hop in hops}
        proxy = by_name["opaque proxy"].median(in_flight, "hop_ms")
        rows = []
        for hop in hops:
            figures = [hop.median(in_flight, column) for column in columns]
            ratio = "" if hop.process is None else f"{figures[3] / proxy:.2f}"
            rows.append([hop.name, f"{figures[0]:.0f}", *(f"{figure:.2f}" for figure in figures[1:]), ratio])
        print(f"\n{size} ({size_bytes} bytes), {in_flight} in flight, {options.rounds} rounds")
        heads = ("", "calls/s", "p50 ms", "p99 ms", "CPU hop ms", "model server", "client", "hop / proxy")
        print(table(heads, rows))
        own = [by_name[f"guard, {mode}"].median(in_flight, "hop_ms") for mode in ("off", "enforce")]
        beyond = own[1] - own[0]
        print(f"enforce - off: {beyond:.2f} ms of CPU, of which its program {program:.2f}; rest {beyond - program:.2f}")


def machine() -> str:
    """The machine's cores and load, and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, load {os.getloadavg()[0]:.1f}, commit {commit.stdout.strip() or 'unknown'}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=None)
    parser.add_argument("--in-flight", nargs="+", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None, help="of one turn")
    parser.add_argument("--model", default="resnet20", help="a network of tests/networks.py for any size of image")
    parser.add_argument("--checkout", type=Path, action="append", default=[], help="another checkout's guards as well")
    options = parser.parse_args()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.sizes = options.sizes or (["12 KB"] if options.quick else list(SIZES))
    options.in_flight = options.in_flight or ((4,) if options.quick else IN_FLIGHT)
    options.seconds = options.seconds or (0.2 if options.quick else None)
    return options


def main() -> None:
    options = parse()
    print(machine())
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(size, Path(folder), options)


if __name__ == "__main__":
    main()
