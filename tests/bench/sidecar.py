"""What the sidecar's benchmarks share: a guard before a model server, started as an operator would, and its books."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from guard.bundle import Bundle
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0


@dataclass(frozen=True)
class Guarded:
    """A guard that serves, and where."""

    address: str
    metrics: str
    process: subprocess.Popen[str]
    rest: str = ""

    def books(self) -> Counter[str]:
        """ModelInfer requests by what became of them."""
        text = urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=20).read().decode()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "guard_requests_total" and sample.value:
                    found[sample.labels["action"]] += int(sample.value)
        return found


@contextmanager
def serving(
    bundle: Path,
    model: Path,
    name: str,
    *flags: str,
    checkout: Path = ROOT,
    cpus: set[int] | None = None,
    module: str = "guard",
) -> Iterator[Guarded]:
    """`guard serve` before `guard model-server`, of this checkout or another, on these CPUs.

    `module` is run in the guard's place.
    """
    with started(checkout, cpus, "model-server", "--model", model, "--name", name, "--threads", "1") as (_, lines):
        upstream = lines["inference"]
        wanted = ("serve", "--bundle", bundle, "--upstream", upstream, "--threads", "1", *flags)
        with started(checkout, cpus, *wanted, module=module) as (process, lines):
            yield Guarded(lines["inference"], lines["metrics"], process)


@contextmanager
def started(
    checkout: Path,
    cpus: set[int] | None,
    command: str,
    *flags: str | Path,
    settings: Mapping[str, str] = MappingProxyType({}),
    module: str = "guard",
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A guard command on free ports; yields its process, and the line with which it says where it listens."""
    listen = ["--listen", "127.0.0.1:0"]
    if command == "serve":
        listen += ["--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)  # a child inherits it
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module, command, *map(str, flags), *listen],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1", **settings},
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield process, until_ready(process, command)
    finally:
        process.kill()
        process.wait()


@contextmanager
def until_listening(module: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Another server of these benchmarks as a process; yields it and the line with which it says where it listens."""
    command = [sys.executable, "-m", module, *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, until_ready(process, "plain server")
    finally:
        process.kill()
        process.wait()


def until_ready(process: subprocess.Popen[str], command: str) -> dict[str, str]:
    assert process.stderr is not None
    wanted = "ready" if command == "serve" else "listening"
    listening: dict[str, str] = {}
    end = time.monotonic() + START_S
    for text in process.stderr:
        line = json.loads(text) if text.startswith("{") else {}
        if line.get("event") == "listening":
            listening = line
        if line.get("event") == wanted:
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would block on a full pipe
            return listening
        if time.monotonic() > end:
            break
    raise SystemExit(f"guard {command} did not come up")


def request_for(bundle: Bundle) -> bytes:
    """A request of one of the bundle's own samples, of those that are most ordinary."""
    samples = bundle.samples
    ordinary = samples.images[int(samples.p_values.argmax())][None]
    message: ModelInferRequest = infer_request(ordinary, name=bundle.manifest.model.name)
    message.inputs[0].name = bundle.manifest.model.input.name
    return message.SerializeToString()


def tiny(folder: Path) -> tuple[Path, Path, str]:
    """The tests' own bundle, its model and its name."""
    bundle = tiny_bundle.make(folder / "bundle")
    model = folder / "tiny.onnx"
    model.write_bytes(tiny_bundle.classifier())
    return bundle.path, model, tiny_bundle.MODEL_NAME


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class PeakMemory:
    """The most that a process held while it was watched, MiB."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.most = resident_mib(process)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.over.wait(0.005):
            self.most = max(self.most, resident_mib(self.process))

    def __enter__(self) -> PeakMemory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be."""
    texts = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in texts)
