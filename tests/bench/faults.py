"""For maintainers: faults under load, one after the other, and how long until calls are right again.

    python -m tests.bench.faults [--hold SECONDS]
    python -m tests.bench.faults --quick          under a minute

A guard of the tests' tiny bundle (`enforce`, closed) is a process with its settings in a file; the model server is one
that can be turned, in this process. Two calls are sent every 20 ms throughout: an ordinary one, and one that is to be
rejected, with a deadline of a second. A fault lasts `--hold` seconds. "noticed" is the time from its begin to the first
call that is not right, "recovered" from its end to the first of 25 calls in a row that are. Judged: nothing passes
unchecked, nothing that should be rejected passes, each call ends with a status, and the guard's books hold each call
that it lived to count.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.bench.sidecar import table
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import free_port, infer_request, metric_of
from tests.serve.processes import Process, process

EVERY_S, DEADLINE_S, RIGHT_IN_A_ROW = 0.02, 1.0, 25
LAST_RATE = 0.02  # in the settings after the burst
PATH = "/inference.GRPCInferenceService/ModelInfer"
SERVE = """
import json, sys, time
from pathlib import Path
from guard.config import SettingsSource
from guard.runtime import Runtime
from guard.serve.server import serve
settings = json.loads(sys.argv[1])
folder = Path(settings["folder"])
def broken(real):
    def run(*given, **options):
        while (folder / "hang").exists():
            time.sleep(0.01)
        if (folder / "lost").exists():
            raise RuntimeError("CUDA error: the device is lost")
        if (folder / "once").exists():
            (folder / "once").unlink()
            raise RuntimeError("CUDA error in this batch")
        return real(*given, **options)
    return run
Runtime.read, Runtime.self_check = broken(Runtime.read), broken(Runtime.self_check)
source = SettingsSource(Path(settings["file"]), {}, {})
serve(source.load(), source)
"""
SETTINGS = """
bundle = "{bundle}"
upstream = "{upstream}"
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:{metrics}"
threads = 1
drain_s = 0
upstream_timeout_s = 1
inspect_timeout_s = 0.5
reject_rate = {rate}
"""


class Turned(FakeUpstream):
    """A model server that can also be slow, or answer garbage."""

    slow_s = 0.0
    garbage = False

    async def infer(self, request: bytes, context: Any) -> bytes:
        await asyncio.sleep(self.slow_s)
        answer = await super().infer(request, context)
        return b"\xff" * 40 if self.garbage else answer


@dataclass
class Call:
    """A call that is over: when it began and ended, and how."""

    began: float
    ended: float
    end: str
    right: bool


@dataclass
class Load:
    """The calls that are sent all the while."""

    channel: grpc.aio.Channel
    calls: list[Call] = field(default_factory=list)
    sent: int = 0
    passed: list[str] = field(default_factory=list)  # what must not have

    async def run(self) -> None:
        infer: Any = self.channel.unary_unary(PATH)
        requests = [infer_request(f(1)).SerializeToString() for f in (tiny_bundle.ordinary, tiny_bundle.bright)]
        async with asyncio.TaskGroup() as group:
            while True:
                for rejected, request in enumerate(requests):
                    self.sent += 1
                    group.create_task(self.call(infer, request, rejected=bool(rejected)))
                await asyncio.sleep(EVERY_S)

    async def call(self, infer: Any, request: bytes, *, rejected: bool) -> None:
        began = time.monotonic()
        call = infer(request, timeout=DEADLINE_S)
        try:
            body = await call
        except grpc.aio.AioRpcError:
            body = b""
        code = (await call.code()).name
        verdict = dict(await call.trailing_metadata() or ()).get("guard-verdict")
        if code == "OK" and (rejected or verdict != "pass"):
            self.passed.append(f"{verdict}, {'to be rejected' if rejected else 'ordinary'}")
        right = code == "PERMISSION_DENIED" if rejected else code == "OK" and b"logits" in body
        self.calls.append(Call(began, time.monotonic(), code, right))


@dataclass
class Scene:
    """Guard, model server and load, and what a fault may do to them."""

    stack: AsyncExitStack
    folder: Path
    settings: dict[str, Any]
    upstream: Turned
    load: Load
    guard: Process | None = None
    there: AsyncExitStack = field(default_factory=AsyncExitStack)

    def write(self, rate: object = "0.01") -> None:
        (self.folder / "guard.toml").write_text(SETTINGS.format(**self.settings, rate=rate), "utf-8")

    async def start_guard(self) -> None:
        arguments = {"folder": str(self.folder), "file": str(self.folder / "guard.toml")}
        self.guard = self.stack.enter_context(process(SERVE, arguments))
        await asyncio.to_thread(self.guard.until_event, "ready")
        _ = asyncio.get_running_loop().run_in_executor(None, read_on, self.guard)  # its log, so that it never waits

    async def start_upstream(self) -> None:
        await self.there.enter_async_context(listening(self.upstream, self.settings["upstream"]))

    async def count(self) -> float:
        return await metric_of(f"127.0.0.1:{self.settings['metrics']}", "guard_requests_total")


def read_on(guard: Process) -> None:
    for _ in guard.popen.stderr or ():
        pass


Fault = Callable[[Scene], Any]


def turned(**settings: Any) -> Fault:
    @contextmanager
    def fault(scene: Scene) -> Any:
        before = {name: getattr(scene.upstream, name) for name in settings}
        for name, value in settings.items():
            setattr(scene.upstream, name, value)
        yield
        for name, value in before.items():
            setattr(scene.upstream, name, value)

    return fault


def device(name: str) -> Fault:
    @contextmanager
    def fault(scene: Scene) -> Any:
        (scene.folder / name).touch()
        yield
        (scene.folder / name).unlink(missing_ok=True)

    return fault


@asynccontextmanager
async def upstream_killed(scene: Scene) -> AsyncIterator[None]:
    await scene.there.aclose()
    yield
    await scene.start_upstream()


@asynccontextmanager
async def guard_killed(scene: Scene) -> AsyncIterator[None]:
    assert scene.guard is not None
    scene.guard.kill()
    yield
    await scene.start_guard()


@asynccontextmanager
async def settings_in_a_burst(scene: Scene) -> AsyncIterator[None]:
    for number in range(30):
        scene.write("0.01" if number % 3 else "nonsense")
        await asyncio.sleep(0.01)
    yield
    scene.write(LAST_RATE)


FAULTS: dict[str, Fault] = {
    "model server killed, started again": upstream_killed,
    "model server hangs": turned(hang_infer=True),
    "model server slow (0.5 s)": turned(slow_s=0.5),
    "model server answers garbage": turned(garbage=True),
    "device fails in one batch": device("once"),
    "device lost": device("lost"),
    "device hangs": device("hang"),
    "settings in a burst, every third bad": settings_in_a_burst,
    "guard killed, started again": guard_killed,  # last: its books end with it
}


async def until_right(load: Load, since: float, patience_s: float = 30.0) -> float | None:
    """The seconds from `since` until the first of so many right calls in a row ended; None where that never came."""
    while time.monotonic() - since < patience_s:
        later = [call for call in load.calls if call.began >= since]
        for start in range(len(later) - RIGHT_IN_A_ROW + 1):
            if all(call.right for call in later[start : start + RIGHT_IN_A_ROW]):
                return later[start].ended - since
        await asyncio.sleep(0.02)
    return None


async def measure(hold_s: float, folder: Path) -> int:
    bundle = tiny_bundle.make(folder / "bundle").path
    ports = {name: free_port() for name in ("port", "metrics")}
    settings = {"bundle": bundle, "upstream": f"127.0.0.1:{free_port()}", **ports}
    rows, bad = [], []
    async with AsyncExitStack() as stack:
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        address = f"127.0.0.1:{ports['port']}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
        scene = Scene(stack, folder, settings, Turned(), Load(channel))
        scene.write()
        await scene.start_upstream()
        stack.push_async_callback(scene.there.aclose)
        await scene.start_guard()
        sending = asyncio.create_task(scene.load.run())
        await until_right(scene.load, time.monotonic())
        for name, fault in FAULTS.items():
            if fault is guard_killed:
                bad += await books(scene)
            scene.load.calls.clear()
            began = time.monotonic()
            made = fault(scene)
            async with made if hasattr(made, "__aenter__") else waiting(made):
                await asyncio.sleep(hold_s)
                ended = time.monotonic()
            recovered = await until_right(scene.load, ended)
            if fault is settings_in_a_burst:
                bad += await settings_at_work(scene)
            calls = list(scene.load.calls)
            wrong = [call.ended - began for call in calls if not call.right]
            ends = Counter(call.end for call in calls if not call.right)
            if recovered is None:
                bad.append(f"{name}: calls were never right again")
            rows.append(
                [
                    name,
                    seconds(min(wrong, default=None)),
                    seconds(recovered),
                    str(len(calls)),
                    ", ".join(f"{count} {end}" for end, count in ends.most_common()) or "none",
                ]
            )
        sending.cancel()
        await asyncio.wait([sending])
    bad += [f"passed: {what}" for what in sorted(set(scene.load.passed))]
    print(table(["fault", "noticed s", "recovered s", "calls", "not right"], rows))
    print("\n".join(bad) or "nothing passed unchecked, each call ended with a status, the books hold")
    return 1 if bad else 0


@asynccontextmanager
async def waiting(fault: Any) -> AsyncIterator[None]:
    with fault:
        yield


async def settings_at_work(scene: Scene) -> list[str]:
    """What is wrong after a burst: the last settings are at work soon, though bad ones came before them."""
    address = f"127.0.0.1:{scene.settings['metrics']}"
    for _ in range(200):
        if (rate := await metric_of(address, "guard_promised_rate", action="reject")) == LAST_RATE:
            return []
        await asyncio.sleep(0.05)
    return [f"reject_rate is {rate:g} at work, and {LAST_RATE:g} in the settings"]


async def books(scene: Scene) -> list[str]:
    """What is wrong with the guard's books: each call that was sent is counted once, soon after."""
    for _ in range(200):
        sent = scene.load.sent
        counted = await scene.count()
        if sent - 200 <= counted <= scene.load.sent:  # those under way, at a hundred a second
            return []
        await asyncio.sleep(0.02)
    return [f"{sent} calls were sent, and {counted:.0f} counted"]


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hold", type=float, default=3.0, help="seconds that a fault lasts")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(0.8 if arguments.quick else arguments.hold, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
