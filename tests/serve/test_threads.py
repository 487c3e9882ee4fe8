"""Threads follow the container: how many a serving process starts, and what it burns while nobody asks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard import container
from guard.bundle import Bundle
from guard.errors import BundleError, DeviceError
from guard.runtime import Runtime
from guard.serve.engine import Engine
from guard.serve.model_server import ServedModel
from guard.session import CudaOptions
from tests.serve import tiny_bundle
from tests.serve.census import pinned, processor_s, threads_of
from tests.serve.guarded import calling, config_for
from tests.serve.processes import ROOT, Process, guard_process, model_process

pytestmark = pytest.mark.alone  # waits and processor time are measured

ONE_CPU = {min(os.sched_getaffinity(0))}
SPINNING = "session.intra_op.allow_spinning"
# Opens a bundle as the engine does, and tells the CPUs it found and the threads that this started.
OPEN = """
import json, os, sys
from guard import container
from guard.bundle import Bundle
from guard.runtime import Runtime
from guard.session import onnxruntime
onnxruntime()
bundles, before = [Bundle.open(path) for path in sys.argv[2:]], len(os.listdir("/proc/self/task"))
for bundle in bundles:
    runtime = Runtime.open(bundle, threads=json.loads(sys.argv[1]), shared=True)
    for _ in range(3):
        runtime.read(bundle.samples.images, complete=True)
print(json.dumps([container.cpus(), len(os.listdir("/proc/self/task")) - before]))
"""


def opened(bundle: Path, threads: int | None) -> tuple[int, int]:
    """CPUs that a process saw, and threads that opening the bundle in it started beside the one that computed."""
    command = [sys.executable, "-c", OPEN, json.dumps(threads), str(bundle)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cpus, started = json.loads(found.stdout)
    return cpus, started


@contextmanager
def ready_guard(bundle: Path, upstream: str, threads: int | None) -> Iterator[Process]:
    """A guard process that has answered a few requests; its address is in its first line."""
    with guard_process(config_for(bundle, upstream, threads=threads)) as guard:
        address = guard.until_event("listening")["inference"]
        guard.until_event("ready")
        asyncio.run(ask(address))
        yield guard


async def ask(address: str) -> None:
    async with calling(address) as client:
        for items in (1, 4, 1, 8):
            answer = await client.infer(tiny_bundle.ordinary(items))
            assert answer.ok, answer


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_process(tmp_path_factory.mktemp("model")) as model:
        yield model.until_event("listening")["inference"]


def test_sessions_have_one_caller_and_share_the_rest(bundle: Path) -> None:
    """Two programs and a repair; the thread that calls them is the first of `threads`."""
    for threads in (1, 2, 3):
        assert opened(bundle, threads)[1] == threads - 1


def test_on_one_cpu_there_is_one_compute_thread(bundle: Path) -> None:
    with pinned(ONE_CPU):
        assert opened(bundle, None) == (1, 0)


def test_no_more_than_the_cpus_at_hand(bundle: Path) -> None:
    cpus, started = opened(bundle, None)
    assert cpus == container.cpus()
    assert started == cpus - 1


def test_a_guard_process_follows_its_container(bundle: Path, upstream: str) -> None:
    """The same guard with explicit numbers and under `taskset -c 0`: nothing but compute threads makes a difference."""
    unnamed = {}
    for name, threads, cpus in (
        ("one", 1, None),
        ("two", 2, None),
        ("taskset", None, ONE_CPU),
    ):
        with pinned(cpus or os.sched_getaffinity(0)), ready_guard(bundle, upstream, threads) as guard:
            unnamed[name] = threads_of(guard.popen.pid)["unnamed"]
    assert unnamed["two"] == unnamed["one"] + 1
    assert unnamed["taskset"] == unnamed["one"]


def test_an_idle_guard_sleeps(bundle: Path, upstream: str) -> None:
    """Less than 1 % of a core, and two ticks for what the kernel's clock cannot tell."""
    shares = []
    with ready_guard(bundle, upstream, 2) as guard:
        while len(shares) < 3 and min(shares, default=1.0) > 0.01:  # one that does not sleep is busy each time
            began, used = time.monotonic(), processor_s(guard.popen.pid)
            while (passed := time.monotonic() - began) < 1.5:
                time.sleep(0.05)
            shares.append((processor_s(guard.popen.pid) - used - 0.02) / passed)
    assert min(shares) <= 0.01, shares


def test_the_engine_asks_for_what_was_configured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    opened_for_real = Runtime.open

    def opened(bundle: Bundle, **options: Any) -> Runtime:
        asked.update(options)
        return opened_for_real(bundle, threads=1)

    monkeypatch.setattr(Runtime, "open", opened)
    cuda = CudaOptions(device_id=1, memory_bytes=2**30)
    engine = Engine(
        Bundle.open(bundle), device="cuda", threads=3, cuda=cuda, stage=lambda *_: None, only_repairs=("steps",)
    )
    asyncio.run(engine.load(largest=2))
    engine.close()
    assert asked == {"device": "cuda", "threads": 3, "cuda": cuda, "shared": True, "only_repairs": ("steps",)}


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (
            RuntimeError("Failed to allocate memory for requested buffer\nand so on"),
            DeviceError,
            "cpu.*Failed to allo.*;",
        ),
        (MemoryError(), DeviceError, "MemoryError; if memory was short, lower max_rows or raise device_memory_bytes"),
        (BundleError("ours"), BundleError, "ours"),
    ],
    ids=["ONNX Runtime's", "without words", "ours"],
)
def test_a_device_that_cannot_run_the_largest_batch(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[Exception], words: str
) -> None:
    real = Runtime.read

    def read(self: Runtime, images: Any, **options: Any) -> Any:
        if len(images) == 16:
            raise failure
        return real(self, images, **options)

    monkeypatch.setattr(Runtime, "read", read)
    engine = Engine(Bundle.open(bundle), device="cpu", threads=1, stage=lambda *_: None)
    with pytest.raises(kind, match=words) as caught:
        asyncio.run(engine.load(largest=16))
    engine.close()
    assert "\n" not in str(caught.value)
    assert not engine.ready


@pytest.mark.parametrize(("threads", "found"), [(None, 3), (2, 2)])
def test_the_model_server_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, found: int) -> None:
    monkeypatch.setattr(container, "cpus", lambda: 3)
    (tmp_path / "tiny.onnx").write_bytes(tiny_bundle.classifier())
    model = ServedModel(tmp_path / "tiny.onnx", name=None, version="", threads=threads)
    options = model.session.get_session_options()
    assert options.intra_op_num_threads == found
    assert options.get_session_config_entry(SPINNING) == "0"
    assert np.isfinite(model.session.run(None, {"input": tiny_bundle.ordinary()})[0]).all()
