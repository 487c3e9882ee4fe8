"""What a scripted day is made of: a guard whose engine can be broken, a model server that can be turned, and traffic.

The guard is a process with its settings in a file, TLS for its clients, a query memory and an audit; its bundle is the
tests' tiny one. Its engine obeys files: `lost` fails every batch, `slow` delays it by the seconds in it.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnx
import trustme
from numpy.typing import NDArray
from onnx import helper

from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import free_port, infer_request
from tests.side import ROOT

PATH = "/inference.GRPCInferenceService/ModelInfer"
LONG_DAYS, SHORT_DAYS = 90, 1
START_S = 60.0
SERVE = """
import json, sys, time
from pathlib import Path
from guard.config import SettingsSource
from guard.runtime import Runtime
from guard.serve.grpc import listener
from guard.serve.server import serve
settings = json.loads(sys.argv[1])
folder = Path(settings["folder"])
def broken(real):
    def run(*given, **options):
        if (folder / "lost").exists():
            raise RuntimeError("CUDA error: the device is lost")
        if (folder / "slow").exists():
            time.sleep(float((folder / "slow").read_text() or 0))
        return real(*given, **options)
    return run
Runtime.read, Runtime.self_check = broken(Runtime.read), broken(Runtime.self_check)
if settings["foreign_grpcio"]:  # one whose private parts the guard does not know, so that the library accepts
    listener.is_known = lambda: False
source = SettingsSource(Path(settings["file"]), {}, {})
serve(source.load(), source)
"""
SETTINGS = """
bundle = "{folder}/bundle"
upstream = "{upstream}"
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:{metrics}"
threads = 1
drain_s = 0
inspect_timeout_s = 4
max_rows = 256
query_memory = "watch"
on_failure = "{on_failure}"
audit_dir = "{folder}/audit"
{tls}
"""


def fragile(content: bytes) -> bytes:
    """The same program, with a detector that gives no number where its score is 0: it multiplies and divides by it."""
    model = onnx.ModelProto.FromString(content)
    for node in model.graph.node:
        if node.output[0] == "scores":
            node.output[0] = "raw"
    model.graph.node.extend(
        [helper.make_node("Mul", ["raw", "raw"], ["square"]), helper.make_node("Div", ["square", "raw"], ["scores"])]
    )
    return model.SerializeToString()


def make_bundle(path: Path, **provenance: Any) -> None:
    """Write the tiny bundle, its second detector fragile; where there is one, put it in its place at once."""
    real = tiny_bundle.interpret
    drafts = Path(tempfile.mkdtemp(dir=path.parent))
    draft = drafts / "new"
    tiny_bundle.interpret = lambda *given, **named: fragile(real(*given, **named))
    try:
        tiny_bundle.make(draft, provenance=provenance)
    finally:
        tiny_bundle.interpret = real
    if path.exists():
        path.rename(drafts / "old")
    draft.rename(path)


@dataclass
class Guard:
    """A guard's process, its files, and what can be done to it."""

    folder: Path
    upstream: str
    tls: trustme.CA | None = None
    foreign_grpcio: bool = False
    port: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def write(self, *, on_failure: str = "closed") -> None:
        """Write the settings."""
        names = {"certificate": "tls/chain.pem", "key": "tls/key.pem"}
        tls = "".join(f'tls_{name} = "{self.folder / file}"\n' for name, file in names.items()) if self.tls else ""
        text = SETTINGS.format(
            folder=self.folder,
            upstream=self.upstream,
            port=self.port,
            metrics=self.metrics,
            on_failure=on_failure,
            tls=tls,
        )
        self.settings.write_text(text, encoding="utf-8")

    @property
    def settings(self) -> Path:
        """The file of the settings."""
        return self.folder / "guard.toml"

    def certify(self, days: int) -> None:
        """Give the guard a certificate that ends in so many days, with its key in the place of the others at once."""
        assert self.tls is not None
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        found = self.tls.issue_cert("127.0.0.1", "localhost", not_after=ends)
        fresh, link = Path(tempfile.mkdtemp(dir=self.folder)), self.folder / "tls.new"
        found.private_key_pem.write_to_path(fresh / "key.pem")
        (fresh / "chain.pem").write_bytes(b"".join(one.bytes() for one in found.cert_chain_pems))
        link.symlink_to(fresh)
        link.rename(self.folder / "tls")

    def start(self) -> None:
        """Start the process, and return once it is ready."""
        options = {"folder": str(self.folder), "file": str(self.settings), "foreign_grpcio": self.foreign_grpcio}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "guard.log").open("ab") as log:
            command = [sys.executable, "-c", SERVE, json.dumps(options)]
            self.process = subprocess.Popen(command, stderr=log, env=environment)
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            assert self.process.poll() is None, (self.folder / "guard.log").read_text("utf-8")[-2000:]
            assert time.monotonic() < deadline, "the guard did not become ready"
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether the guard says that it is ready, over HTTP."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/readyz", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def reread(self) -> None:
        """Have the settings read again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def reloads(self) -> float:
        """How many reloads the guard has counted, whatever came of them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("guard_reload_total{"))

    def fail(self, name: str, content: str = "") -> None:
        """Break the engine in one of the ways that it knows."""
        (self.folder / name).write_text(content, encoding="utf-8")

    def mend(self, name: str) -> None:
        """End what `fail` began."""
        (self.folder / name).unlink()


@dataclass
class ModelServer:
    """The model server of the tests, which can go and come back on its address."""

    upstream: FakeUpstream = field(default_factory=FakeUpstream)
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    there: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Listen."""
        await self.there.enter_async_context(listening(self.upstream, self.address))

    async def kill(self) -> None:
        """Close the port and every connection at once."""
        await self.there.aclose()


class Traffic:
    """What makes items: each call gives others, since near-copies are another kind of traffic."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(12)

    def clean(self, items: int) -> NDArray[np.float32]:
        """Items as the bundle was calibrated on."""
        return tiny_bundle.clean(items, seed=int(self.generator.integers(2**32)))

    def drifted(self, items: int) -> NDArray[np.float32]:
        """Brighter items, of which a few more are rejected, and thrice as many flagged."""
        return (self.clean(items) + np.float32(0.037)).clip(0, 1)

    def attacked(self, items: int) -> NDArray[np.float32]:
        """Items of which a third has stripes, as nothing clean has."""
        images = self.clean(items)
        striped = self.generator.uniform(size=items) < 1 / 3
        images[striped] += np.asarray([-0.3, 0.3, -0.3, 0.3], dtype=np.float32)
        return images.clip(0, 1)

    def blank(self, items: int) -> NDArray[np.float32]:
        """Items of which a third is one grey, as a camera gives that has failed."""
        images = self.clean(items)
        images[self.generator.uniform(size=items) < 1 / 3] = 0.5
        return images

    def searching(self, items: int) -> NDArray[np.float32]:
        """One item, of which each call moves one value: a search for an adversarial input."""
        image = tiny_bundle.ordinary(1)
        image.flat[self.generator.integers(image.size)] += np.float32(self.generator.uniform(0.02, 0.06))
        return image


Mix = Callable[[int], NDArray[np.float32]]


@dataclass
class Load:
    """The requests that clients send all the while, and how they ended."""

    call: Any
    mix: Mix
    rate: float
    items: int
    deadline_s: float = 5.0
    paused: bool = False
    ends: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Send at the rate, whatever becomes of what was sent before."""
        chance = np.random.default_rng(3)
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                now = time.monotonic()
                due = max(due, now - 0.5)  # what this client could not send in time is not sent at once
                while due <= now:
                    due += float(chance.exponential(1 / self.rate))
                    if not self.paused:
                        group.create_task(self.one())
                await asyncio.sleep(max(0.001, min(0.01, due - now)))

    async def one(self, images: NDArray[np.float32] | None = None) -> None:
        """Send one request."""
        request = infer_request(self.mix(self.items) if images is None else images).SerializeToString()
        try:
            await self.call(request, timeout=self.deadline_s)
        except grpc.aio.AioRpcError as error:
            self.ends[error.code().name] += 1
        else:
            self.ends["OK"] += 1
