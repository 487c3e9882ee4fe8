"""For maintainers: the threads of a serving guard under limits, and what it costs that they do not spin.

    python -m tests.bench.threads                    the tiny bundle of the tests, and its own requests
    python -m tests.bench.threads demo/bundle        any other bundle, asked for the bundle's own samples

First `guard serve` before our model server, as it starts with no limit, on one CPU (as under taskset), and in control
groups of its own with a quota; where no group can be made the table says why. Then a Runtime for one item, as `serve`
opens it and as `guard bench` does, each in a process of its own, taking turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from guard import container
from guard.bundle import Bundle
from guard.offline.bench.excerpt import excerpt, read_graph, write_graph
from tests.serve import tiny_bundle
from tests.serve.census import pinned, processor_s, threads_of
from tests.serve.guarded import calling, config_for, infer_request
from tests.serve.processes import ROOT, model_file_process

REQUESTS, PAUSE_S, IDLE_S = 60, 0.05, 2.0
GUARD = """
import json, os, sys
group, settings = json.loads(sys.argv[1])
if group:
    open(group + "/cgroup.procs", "w").write("0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
tasks = lambda: len(os.listdir("/proc/self/task"))
import numpy
blas = tasks() - 1
import threading
def census():
    for _ in sys.stdin:
        python = len(threading.enumerate()) - 1  # this thread is ours
        print(json.dumps({"blas": blas, "python": python, "cpus": container.cpus()}), flush=True)
from guard import container
from guard.config import ServeConfig
from guard.serve.server import serve
threading.Thread(target=census, daemon=True).start()
serve(ServeConfig(**settings))
"""
READER = """
import json, sys, time
import numpy as np
from guard.bundle import Bundle
from guard.runtime import Runtime
bundle, options = Bundle.open(sys.argv[1]), json.loads(sys.argv[2])
runtime, image = Runtime.open(bundle, **options), bundle.samples.images[:1]
for _ in range(10):
    runtime.read(image, complete=True)
print(flush=True)
for line in sys.stdin:
    count, pause_s = json.loads(line)
    laps, used = [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        runtime.read(image, complete=True)
        laps.append(time.perf_counter() - began)
        time.sleep(pause_s)
    time.sleep(0.05)  # threads that spin go on meanwhile
    print(json.dumps([float(np.median(laps)), (time.process_time() - used) / count]), flush=True)
"""


def main() -> None:
    options = parse()
    console = Console(width=max(120, Console().width))
    with tempfile.TemporaryDirectory(prefix="guard-threads-") as folder:
        bundle = Bundle.open(options.bundle) if options.bundle else tiny_bundle.make(Path(folder) / "bundle")
        model = Path(folder) / "model.onnx"
        write_graph(
            excerpt(read_graph(bundle.path / bundle.manifest.programs[0].file), ("logits",)), model, bundle.path
        )
        console.print(guards(bundle, model))
        console.print(readers(bundle, options.rounds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def guards(bundle: Bundle, model: Path) -> Table:
    """One line for each limit."""
    table = Table(
        "limit", "CPUs seen", "ONNX Runtime", "OpenBLAS", "Python", "gRPC", "idle", "CPU", "p50", "p99", "throttled"
    )
    table.title = f"{bundle.manifest.model.name}: threads of a guard process by kind, and what a request takes"
    one = {min(os.sched_getaffinity(0))}
    with model_file_process(model, name=bundle.manifest.model.name) as upstream:
        address = upstream.until_event("listening")["inference"]
        limits: list[tuple[str, set[int] | None, float | None, dict[str, str]]] = [
            ("none", None, None, {}),
            ("none, OpenBLAS free", None, None, {"OPENBLAS_NUM_THREADS": str(os.cpu_count())}),
            ("taskset, one CPU", one, None, {}),
            ("quota of 1 CPU", None, 1.0, {}),
            ("quota of half a CPU", None, 0.5, {}),
        ]
        for name, cpus, quota, environment in limits:
            try:
                with pinned(cpus or os.sched_getaffinity(0)), grouped(quota) as group:
                    table.add_row(name, *guard_line(bundle, address, group, environment), throttled(group))
            except OSError as error:
                table.add_row(name, f"not tried: {error}")
    return table


@contextmanager
def grouped(quota: float | None) -> Iterator[Path | None]:
    """A control group with this quota in CPUs, below our own. Raises OSError where none can be made."""
    if quota is None:
        yield None
        return
    places = [place for place in container.folders("cpu", container.ROOT) if (place / "cgroup.procs").exists()]
    if not places:
        raise OSError("no tree of control groups is mounted")
    group = places[0] / f"guard-bench-{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota * 100_000:.0f} 100000", encoding="ascii")
        else:
            (group / "cpu.cfs_quota_us").write_text(f"{quota * 100_000:.0f}", encoding="ascii")
        yield group
    finally:
        group.rmdir()


def throttled(group: Path | None) -> str:
    """The share of the kernel's periods in which the group used up its quota, and all its processes had to wait."""
    if group is None:
        return ""
    lines = (group / "cpu.stat").read_text(encoding="ascii").splitlines()
    counts = {key: int(value) for key, value in (line.split() for line in lines)}
    return f"{counts['nr_throttled'] / max(1, counts['nr_periods']):.0%}"


def guard_line(bundle: Bundle, upstream: str, group: Path | None, environment: dict[str, str]) -> list[str]:
    """Start a guard, ask it, leave it alone, and count."""
    config = asdict(config_for(bundle.path, upstream, threads=None))
    command = [sys.executable, "-c", GUARD, json.dumps([group and str(group), config])]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as guard:
        try:
            address = event(guard, "listening")["inference"]
            event(guard, "ready")
            laps, used = asyncio.run(paced(bundle, address, guard.pid))
            began, before = time.monotonic(), processor_s(guard.pid)
            time.sleep(IDLE_S)
            idle = (processor_s(guard.pid) - before) / (time.monotonic() - began)
            print(file=guard.stdin, flush=True)
            told, names = json.loads(guard.stdout.readline()), threads_of(guard.pid)  # type: ignore[union-attr]
        finally:
            guard.kill()
    names["unnamed"] -= 1  # the one that counts
    return [str(told["cpus"]), *kinds(told, names), f"{idle:.1%}", *(f"{1e3 * s:.2f} ms" for s in (used, *laps))]


def kinds(told: dict[str, int], names: Counter[str]) -> list[str]:
    """Threads of ONNX Runtime, OpenBLAS, Python and gRPC. Whoever calls ONNX Runtime is one of Python's."""
    unnamed = names["unnamed"]
    runtime = unnamed - told["python"] - told["blas"]
    return [str(n) for n in (runtime, told["blas"], told["python"], names.total() - unnamed)]


def event(guard: subprocess.Popen[str], name: str) -> dict[str, Any]:
    for line in guard.stderr or ():
        found: dict[str, Any] = json.loads(line)
        if found["event"] == name:
            return found
    raise OSError(f"the guard ended without {name!r}")


async def paced(bundle: Bundle, address: str, pid: int) -> tuple[tuple[float, float], float]:
    """Median and 99th percentile of single items' latency, and processor time of the guard for each, in seconds."""
    image, spec = bundle.samples.images[:1], bundle.manifest.model
    request = infer_request(image, name=spec.name)
    request.model_version, request.inputs[0].name = spec.version, spec.input.name
    laps: list[float] = []
    async with calling(address) as client:
        for _ in range(5):
            await client.call("ModelInfer", request)
        before = processor_s(pid)
        for _ in range(REQUESTS):
            began = time.perf_counter()
            await client.call("ModelInfer", request)
            laps.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)
    return (float(np.median(laps)), float(np.quantile(laps, 0.99))), (processor_s(pid) - before) / REQUESTS


def readers(bundle: Bundle, rounds: int) -> Table:
    """Every program on one item: back to back, and one item every 30 ms."""
    table = Table("threads", "back to back", "every 30 ms", "CPU of these")
    table.title = f"{bundle.manifest.model.name}: one item, medians of {rounds} rounds [quartiles]"
    settings = {
        f"{threads}, {name}": {"threads": threads, "shared": shared}
        for threads in (1, 2)
        for name, shared in (("spinning", False), ("shared", True))
    }
    with ExitStack() as stack:
        children = {name: stack.enter_context(reader(bundle, options)) for name, options in settings.items()}
        laps: dict[tuple[str, float], list[list[float]]] = {}
        for _ in range(rounds):
            for pause_s, count in ((0.0, 20), (0.03, 10)):
                for name, child in children.items():
                    print(json.dumps([count, pause_s]), file=child.stdin, flush=True)
                    laps.setdefault((name, pause_s), []).append(json.loads(child.stdout.readline()))  # type: ignore[union-attr]
    for name in settings:
        densely, sparsely = laps[name, 0.0], laps[name, 0.03]
        table.add_row(
            name,
            *(spread([lap[0] for lap in found]) for found in (densely, sparsely)),
            spread([lap[1] for lap in sparsely]),
        )
    return table


@contextmanager
def reader(bundle: Bundle, options: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", READER, str(bundle.path), json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


def spread(seconds: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{1e3 * middle:.2f} ms [{1e3 * low:.2f}, {1e3 * high:.2f}]"


if __name__ == "__main__":
    main()
