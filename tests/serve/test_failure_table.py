"""The table of failures, each cell driven from a configuration file to the wire; README shows the same table.

How it works. For each mode and setting of `on_failure` a guard is started from a guard.toml, and a fault is made for
each row: in the request, in the engine, in the guard's code, in the model server, by the client. What the client gets,
which metric moves and what the log says must be what the cell says.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from guard.errors import leaves
from guard.policy import Mode, OnFailure, Policy
from guard.runtime import Runtime
from guard.serve import failure_table
from guard.serve.engine import Engine
from guard.serve.failure_table import (
    BREAKER_OPEN,
    FAILURES,
    UNWANTED_UNCHECKED,
    WANTED_UNCHECKED,
    Failure,
    as_markdown,
    cell,
    every_setting,
    excuse,
)
from guard.serve.grpc import decode
from guard.serve.grpc.upstream import path
from guard.serve.log import Log
from guard.serve.metrics import UNCHECKED_REASONS
from guard.serve.server import running
from tests.layering import ROOT
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import listening
from tests.serve.frames import unary
from tests.serve.guarded import PATIENCE_S, Client, calling, infer_request, until
from tests.serve.test_models import SeveralModels, configured

ORDINARY = tiny_bundle.ordinary(1)
REFUSAL_LOG_S = 0.1  # more than the guard lets pass between two lines about refusals for one reason
SHORT_S = 0.2  # the deadline of an impatient client
ORDER = {"programs not loaded yet": -1, "model server down": 1}  # of rows: the first and the last; others as they stand
SETTINGS = """
inspect_timeout_s = 1.5
max_rows = 4
max_queue_rows = 4
breaker_failures = 3
upstream_timeout_s = 1
mode = "{mode}"
on_failure = "{on_failure}"
models.tiny = {{ bundle = "{bundle}" }}
models.rare = {{ bundle = "{bundle}", sample = 1e-9 }}
"""


def test_readme_shows_the_table() -> None:
    assert f"\n{as_markdown()}\n" in (ROOT / "README.md").read_text("utf-8")


def test_modes_that_README_shows_as_one_agree() -> None:
    for failure in FAILURES:
        for on_failure in ("closed", "open"):
            assert cell(failure, "enforce", on_failure) == cell(failure, "flag", on_failure)  # type: ignore[arg-type]
        for mode in ("shadow", "off"):
            assert cell(failure, mode, "closed") == cell(failure, mode, "open")  # type: ignore[arg-type]


def test_in_closed_mode_nothing_passes_unchecked_but_what_the_operator_leaves_out() -> None:
    passing = {failure.place for failure in FAILURES if cell(failure, "enforce", "closed").unchecked}
    assert passing == {"not sampled"}


@pytest.mark.parametrize("error", [*leaves(), Exception], ids=lambda error: error.__name__)
def test_every_reason_by_which_a_failure_passes_is_begun_at_zero(error: type[Exception]) -> None:
    for mode, on_failure in every_setting():
        reason = excuse(Policy(mode=mode, on_failure=on_failure), error())
        assert reason is None or reason in UNWANTED_UNCHECKED
        assert reason is None or reason in UNCHECKED_REASONS


def test_every_reason_that_the_code_counts_is_of_the_table() -> None:
    """Wherever a request is counted as unchecked, its reason is a name of the table, or what the table gave."""
    texts = [file.read_text("utf-8") for file in sorted((ROOT / "guard/serve").rglob("*.py"))]
    counted = {one for text in texts for one in re.findall(r"\.unchecked\.labels\((?:\w+), ([^)]+)\)", text)}
    assert counted == {"ALLOWED_METHOD", "reason"}
    passed = {one for text in texts for one in re.findall(r"self\.unchecked\([^,]+(?:\([^)]*\))?, (\w+), call", text)}
    assert {"OFF", "ALLOWED_MODEL", "NOT_SAMPLED", "SHADOW_QUEUE"} <= passed
    assert {getattr(failure_table, name) for name in passed if name.isupper()} <= {*WANTED_UNCHECKED, BREAKER_OPEN}


@dataclass
class Faults:
    """The faults that a test can switch on, in the real parts."""

    engine: bool = False  # the programs fail
    device: bool = False  # and the self-check, too
    code: bool = False  # a fault in the decoder
    free: threading.Event = field(default_factory=threading.Event)  # unless it is set, the device hangs
    loaded: asyncio.Event = field(default_factory=asyncio.Event)  # unless it is set, the programs are being loaded

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free.set()
        read, check, load, parse = Runtime.read, Runtime.self_check, Engine.load, decode.parse

        def faulty_read(runtime: Runtime, *given: Any, **options: Any) -> Any:
            assert self.free.wait(PATIENCE_S)
            if self.engine or self.device:
                raise RuntimeError("CUDA error")
            return read(runtime, *given, **options)

        def faulty_check(runtime: Runtime) -> None:
            if self.device:
                raise RuntimeError("CUDA error: no device")
            check(runtime)

        async def slow_load(engine: Engine, **options: Any) -> None:
            await self.loaded.wait()
            await load(engine, **options)

        def faulty_parse(request: bytes) -> Any:
            if self.code:
                raise ZeroDivisionError("a fault of ours")
            return parse(request)

        monkeypatch.setattr(Runtime, "read", faulty_read)
        monkeypatch.setattr(Runtime, "self_check", faulty_check)
        monkeypatch.setattr(Engine, "load", slow_load)
        monkeypatch.setattr(decode, "parse", faulty_parse)


@dataclass
class Scene:
    """A guard, the model server behind it, a client, and the faults."""

    mode: Mode
    client: Client
    address: str
    metrics_address: str
    upstream: SeveralModels
    leave_upstream: Callable[[], Any]
    faults: Faults
    log: io.StringIO

    def lines(self, *events: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] in events]

    async def text(self) -> str:
        url = f"http://{self.metrics_address}/metrics"
        return await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())

    async def counts(self, wanted: Sequence[tuple[str, dict[str, str]]]) -> list[float]:
        """The sums of metrics' samples with these labels."""
        samples = [sample for family in text_string_to_metric_families(await self.text()) for sample in family.samples]
        return [
            sum(sample.value for sample in samples if sample.name == metric and labels.items() <= sample.labels.items())
            for metric, labels in wanted
        ]

    async def infer(self, **options: Any) -> dict[str, Any]:
        """Send a request, and return the metadata that its client is told at the end."""
        return dict((await self.client.infer(**{"images": ORDINARY, **options})).trailing)


Send = Callable[[Scene], Any]
Fault = Callable[[Scene], AbstractAsyncContextManager[Send]]


@asynccontextmanager
async def in_the_request(scene: Scene) -> AsyncIterator[Send]:
    del scene
    yield lambda scene: scene.infer(images=ORDINARY * np.float32(np.nan))


@asynccontextmanager
async def in_its_form(scene: Scene) -> AsyncIterator[Send]:
    del scene
    message = infer_request(ORDINARY)
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"

    async def send(scene: Scene) -> dict[str, Any]:
        return dict((await scene.client.call("ModelInfer", message)).trailing)

    yield send


@asynccontextmanager
async def while_loading(scene: Scene) -> AsyncIterator[Send]:
    yield Scene.infer
    scene.faults.loaded.set()


@asynccontextmanager
async def in_the_engine(scene: Scene) -> AsyncIterator[Send]:
    scene.faults.engine = True
    yield Scene.infer
    scene.faults.engine = False


@asynccontextmanager
async def of_the_device(scene: Scene) -> AsyncIterator[Send]:
    scene.faults.device = True
    yield Scene.infer
    scene.faults.device = False


@asynccontextmanager
async def that_the_breaker_stops(scene: Scene) -> AsyncIterator[Send]:
    scene.faults.device = True
    give_up = time.monotonic() + PATIENCE_S
    while scene.mode != "off" and len(scene.lines("breaker open")) == len(scene.lines("breaker closed")):
        assert time.monotonic() < give_up
        await scene.infer()
        await asyncio.sleep(0.02)
    yield Scene.infer
    scene.faults.device = False
    await until(lambda: len(scene.lines("breaker open")) == len(scene.lines("breaker closed")))


@asynccontextmanager
async def of_a_hanging_device(scene: Scene) -> AsyncIterator[Send]:
    scene.faults.free.clear()
    yield Scene.infer
    scene.faults.free.set()


@asynccontextmanager
async def in_the_queue(scene: Scene) -> AsyncIterator[Send]:
    """One request is on the device, and one fills the queue; in `off` nothing goes there."""
    if scene.mode == "off":
        yield Scene.infer
        return
    rows, batches = ("guard_queue_rows", {}), ("guard_batch_rows_count", {})
    scene.faults.free.clear()
    (already,) = await scene.counts([batches])
    before = [asyncio.create_task(scene.infer())]
    while await scene.counts([batches]) == [already]:
        await asyncio.sleep(0.01)
    before.append(asyncio.create_task(scene.infer(images=tiny_bundle.ordinary(2))))
    while await scene.counts([rows]) == [0]:
        await asyncio.sleep(0.01)
    yield Scene.infer
    scene.faults.free.set()
    await asyncio.gather(*before)


@asynccontextmanager
async def in_our_code(scene: Scene) -> AsyncIterator[Send]:
    scene.faults.code = True
    yield Scene.infer
    scene.faults.code = False


@asynccontextmanager
async def of_the_draw(scene: Scene) -> AsyncIterator[Send]:
    del scene
    yield lambda scene: scene.infer(name="rare")


@asynccontextmanager
async def of_a_model_server_that_is_gone(scene: Scene) -> AsyncIterator[Send]:
    await scene.leave_upstream()
    yield Scene.infer


async def impatient(scene: Scene) -> dict[str, Any]:
    """Send a request with a short deadline, from a client that leaves it to the guard to notice when that is over."""
    timeout = (b"grpc-timeout", f"{SHORT_S * 1000:.0f}m".encode())
    body = infer_request(ORDINARY).SerializeToString()
    await asyncio.to_thread(unary, scene.address, path("ModelInfer").encode(), body, timeout, patience_s=2 * SHORT_S)
    return {}


@asynccontextmanager
async def of_a_slow_model_server(scene: Scene) -> AsyncIterator[Send]:
    scene.upstream.hang_infer = True
    yield impatient
    scene.upstream.hang_infer = False


@asynccontextmanager
async def of_an_impatient_client(scene: Scene) -> AsyncIterator[Send]:
    """While it is inspected; in `off` nothing is, and it waits for the model server."""
    scene.faults.free.clear()
    scene.upstream.hang_infer = True
    yield impatient
    scene.upstream.hang_infer = False
    scene.faults.free.set()


@asynccontextmanager
async def of_a_client_that_leaves(scene: Scene) -> AsyncIterator[Send]:
    async def send(scene: Scene) -> dict[str, Any]:
        leaving = asyncio.create_task(scene.infer())
        await asyncio.sleep(SHORT_S)
        leaving.cancel()
        return {}

    scene.faults.free.clear()
    scene.upstream.hang_infer = True
    yield send
    scene.upstream.hang_infer = False
    scene.faults.free.set()


FAULTS: dict[str, Fault] = {
    "malformed request": in_the_request,
    "not inspectable by its form": in_its_form,
    "programs not loaded yet": while_loading,
    "engine fails on it": in_the_engine,
    "device lost": of_the_device,
    "engine hangs, or is too slow": of_a_hanging_device,
    "breaker open": that_the_breaker_stops,
    "queue full": in_the_queue,
    "fault in the guard's code": in_our_code,
    "not sampled": of_the_draw,
    "model server down": of_a_model_server_that_is_gone,
    "model server slow": of_a_slow_model_server,
    "client's deadline passes": of_an_impatient_client,
    "client leaves": of_a_client_that_leaves,
}


def test_every_row_has_its_fault() -> None:
    assert list(FAULTS) == [failure.place for failure in FAILURES]


async def check(scene: Scene, failure: Failure, on_failure: OnFailure) -> None:
    """Make a fault, send a request, and hold what becomes of it against the cell."""
    expected, place = cell(failure, scene.mode, on_failure), f"{failure.place}, {scene.mode}, {on_failure}"
    action = "unchecked" if expected.unchecked else "refused" if failure.of_inspection else expected.reason
    label = "action" if expected.metric == "guard_requests_total" else "reason"
    moves: tuple[tuple[str, dict[str, str]], ...] = (
        (expected.metric, {label: expected.reason}),
        ("guard_requests_total", {"action": action}),
        ("grpc_server_handled_total", {"grpc_method": "ModelInfer", "grpc_code": expected.status}),
    )
    stays = "guard_refused_total" if expected.unchecked else "guard_unchecked_total"
    if scene.mode == "off" and not failure.of_inspection:
        stays = "guard_refused_total"  # what is not inspected counts as unchecked before it is forwarded

    async with FAULTS[failure.place](scene) as send:
        *before, stayed = await scene.counts([*moves, (stays, {})])
        forwarded, told = len(scene.upstream.requests), scene.log.tell()
        trailing = await send(scene)
        give_up = time.monotonic() + PATIENCE_S
        while await scene.counts(moves) != [count + 1 for count in before]:
            assert time.monotonic() < give_up, f"{place}: {moves} do not all count one more than {before}"
            await asyncio.sleep(0.01)
        assert await scene.counts([(stays, {})]) == [stayed], f"{place}: {stays} counts it as well"
        if failure.of_inspection:
            assert trailing.get("guard-verdict") == ("unchecked" if expected.unchecked else None), place
            assert (len(scene.upstream.requests) > forwarded) is expected.unchecked, f"{place}: forwarded, or not"
        known = trailing.get("guard-id")
        while not (found := told_of(scene, told, known)) and expected.event is not None:
            assert time.monotonic() < give_up, f"{place}: no line in the log"
            await asyncio.sleep(0.01)  # it may be written after it is counted
    assert found == ([] if expected.event is None else [(expected.event, expected.level, expected.reason)]), place


def told_of(scene: Scene, since: int, known: str | None) -> list[tuple[str, str, str]]:
    """Event, level and reason of the lines about a request, or about any where its id is not known."""
    lines = [json.loads(line) for line in scene.log.getvalue()[since:].splitlines()]
    lines = [line for line in lines if line["event"] in ("unchecked", "refused") and known in (None, line["id"])]
    return [(line["event"], line["level"], line["reason"].lower()) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "on_failure"), every_setting())
def test_each_cell_is_what_happens(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, on_failure: OnFailure
) -> None:
    async def story() -> None:
        faults, upstream, log = Faults(), SeveralModels(), io.StringIO()
        faults.install(monkeypatch)
        async with AsyncExitStack() as stack:
            there = AsyncExitStack()
            address = await there.enter_async_context(listening(upstream))
            stack.push_async_callback(there.aclose)
            text = SETTINGS.format(mode=mode, on_failure=on_failure, bundle=bundle)
            source = configured(tmp_path, address, text)
            starting = running(source.load(), log=Log("debug", log), source=source)
            guard = asyncio.create_task(stack.enter_async_context(starting))
            await until(lambda: guard.done() or '"event": "listening"' in log.getvalue())
            (line,) = [json.loads(line) for line in log.getvalue().splitlines() if '"listening"' in line]
            client = await stack.enter_async_context(calling(line["inference"]))
            scene = Scene(mode, client, line["inference"], line["metrics"], upstream, there.aclose, faults, log)
            for failure in sorted(FAILURES, key=lambda failure: ORDER.get(failure.place, 0)):
                await check(scene, failure, on_failure)
                await asyncio.sleep(REFUSAL_LOG_S)  # so that the log has a line about the next one, too
                await guard
                if failure.place != "model server down":
                    await until(lambda: guard.result().readiness.because is None)

    asyncio.run(story())
