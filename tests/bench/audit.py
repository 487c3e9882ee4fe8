"""For maintainers: what the audit costs a request, on a good disk, a small, a full and a slow one, and a hung sink.

    python -m tests.bench.audit                                                the tiny bundle of the tests
    python -m tests.bench.audit --bundle demo/bundle --model demo/model.onnx [--seconds 40]
    python -m tests.bench.audit --price                                        processor time of one line, by its input
    python -m tests.bench.audit --quick                                        no figures to quote

Two guards serve before one model server each, one without an audit and one that writes a line with its input for every
attacked request, keeps a tenth of all items as its sample, and sends events. Blocks of requests go to one and to the
other in turn (A B B A), two at a time, a quarter of them attacked, so that both see the machine alike. Told are the
50th and 99th percentile of each, their ratio with a 95 % interval (bootstrap over pairs of blocks), the processor time
of the guard's process a request, which depends less on what else the machine does, and what the audit wrote and lost,
by reason, as its metrics have it. The disk of 16 MiB is a tmpfs, for which it takes root; slow and full
ones are the real command line with its writes delayed by 50 ms or refused with ENOSPC. The hung sink takes connections
and never answers. Judged are the answers alone: each as it should be, on every disk.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from guard.audit_log import AuditLog
from guard.bundle import Bundle
from guard.judge import Judge
from guard.policy import Policy
from guard.runtime import Runtime
from guard.serve.audit.audit import Audit, AuditedInput, LogOfEvents
from guard.serve.audit.metrics import AuditMetrics
from guard.serve.event_loop import EventLoop
from guard.serve.grpc.upstream import path
from guard.serve.outcome import Outcome
from tests.bench.sidecar import Guarded, serving, table, tiny
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request

ATTACKED_EVERY = 4
IN_FLIGHT = 2
BLOCK_S = 0.5
RESAMPLES = 2000
SMALL_DISK = "16m"
LEFT_BYTES = 96 << 10  # on it


@dataclass(frozen=True)
class Disk:
    """A place for the audit: how it is made, and the fault that the guard's writes meet."""

    name: str
    fault: str | None = None
    small: bool = False
    hung_sink: bool = False


DISKS = (
    Disk("no fault"),
    Disk("tmpfs of 16 MiB, 96 KiB free", small=True),
    Disk("every write ENOSPC", fault="full"),
    Disk("every write takes 50 ms", fault="slow"),
    Disk("sink hangs", hung_sink=True),
)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs that is nearly full of others' bytes; yields whether that could be done here."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode
    try:
        if mounted:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
            (folder / "others").write_bytes(bytes(free - LEFT_BYTES))
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def hung_sink() -> Iterator[str]:
    """A server that takes connections and what is sent, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/events"
        for one in kept:
            one.close()


@dataclass
class Arm:
    """One of the two guards: its channel, and how long requests took, by block."""

    call: Any
    process: int
    blocks: list[NDArray[np.float64]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    began_s: float = 0.0  # processor time that its guard had taken before

    def begin(self) -> None:
        """Forget what came before."""
        self.blocks.clear()
        self.ends.clear()
        self.began_s = processor_s(self.process)

    @property
    def processor_ms(self) -> float:
        """Processor time of the guard a request, the threads of its audit included."""
        return 1e3 * (processor_s(self.process) - self.began_s) / sum(map(len, self.blocks))

    async def block(self, calm: bytes, attacked: bytes, seconds: float) -> None:
        """Send requests for a while."""
        took: list[float] = []
        end, number = time.monotonic() + seconds, 0

        async def client() -> None:
            nonlocal number
            while (began := time.monotonic()) < end:
                number += 1
                odd = number % ATTACKED_EVERY == 0
                try:
                    await self.call(attacked if odd else calm, timeout=30)
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                self.ends[f"{'attacked' if odd else 'calm'}: {code}"] += 1
                took.append(time.monotonic() - began)

        await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
        self.blocks.append(np.asarray(took))

    def percentile(self, share: float) -> float:
        """A percentile of all requests, in milliseconds."""
        return 1e3 * float(np.quantile(np.concatenate(self.blocks), share))


def processor_s(process: int) -> float:
    """The processor time that a process has taken, all its threads together."""
    parts = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


async def compare(guards: tuple[Guarded, Guarded], bodies: tuple[bytes, bytes], seconds: float) -> tuple[Arm, Arm]:
    """Send blocks to both guards in turn."""
    async with AsyncExitStack() as stack:
        arms = []
        for guard in guards:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(guard.address))
            arms.append(Arm(channel.unary_unary(path("ModelInfer")), guard.process.pid))
        for arm in arms:  # what comes first is slow
            await arm.block(*bodies, 2 * BLOCK_S)
        for arm in arms:
            arm.begin()
        for number in range(max(1, round(seconds / (2 * BLOCK_S)))):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                await arm.block(*bodies, BLOCK_S)
        return arms[0], arms[1]


def interval(without: Arm, audited: Arm, share: float) -> tuple[float, float]:
    """The 95 % interval of the ratio of a percentile, over pairs of blocks."""
    generator, count = np.random.default_rng(0), len(without.blocks)
    found = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, count, count)
        sides = [np.quantile(np.concatenate([arm.blocks[n] for n in drawn]), share) for arm in (audited, without)]
        found.append(sides[0] / sides[1])
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def written_and_lost(guard: Guarded) -> str:
    """What the audit wrote and lost, from its metrics."""
    text = urllib.request.urlopen(f"http://{guard.metrics}/metrics", timeout=20).read().decode()
    parts = []
    for family in text_string_to_metric_families(text):
        parts += [
            f"{sample.labels['of']} {sample.labels.get('reason', 'written')} {sample.value:.0f}"
            for sample in family.samples
            if sample.name in ("guard_audit_written_total", "guard_audit_lost_total") and sample.value
        ]
    return ", ".join(parts)


def bodies(bundle: Bundle) -> tuple[bytes, bytes]:
    """A calm request and one that is rejected, of the bundle's samples or made from them."""
    model, samples = bundle.manifest.model, bundle.samples
    calm = samples.images[int(samples.p_values.argmax())][None]
    worst = int(samples.p_values.argmin())
    odd = samples.images[worst][None]
    if samples.p_values[worst] > bundle.manifest.reject_rate:
        low, high = model.input.box.low[0], model.input.box.high[0]
        odd = np.random.default_rng(0).uniform(low, high, calm.shape).astype(calm.dtype)
    found = []
    for images in (calm, odd):
        message = infer_request(images, name=model.name)
        message.inputs[0].name = model.input.name
        found.append(message.SerializeToString())
    return found[0], found[1]


def on(disk: Disk, folder: Path, served: tuple[Path, Path, str], options: argparse.Namespace) -> list[str] | str | None:
    """Measure one disk: its row, a line where it cannot be had here, None where an answer was wrong."""
    with ExitStack() as stack:
        folder.mkdir()
        place = folder / "disk"
        if disk.small and not stack.enter_context(small_disk(place)):
            return f"{disk.name}: a tmpfs cannot be mounted here"
        lines = [f'audit_dir = "{place / "audit"}"', "audit_inputs = true", "sample_share = 0.1"]
        if disk.hung_sink:
            lines.append(f'events_sink = "{stack.enter_context(hung_sink())}"')
        settings = folder / "guard.toml"
        settings.write_text("\n".join(lines) + "\n", encoding="utf-8")
        module = "guard"
        if disk.fault is not None:
            os.environ["DISK_FAULT"], module = disk.fault, "tests.bench.faulty_disk"
        without = stack.enter_context(serving(*served))
        audited = stack.enter_context(serving(*served, "--config", str(settings), module=module))
        pair = bodies(Bundle.open(served[0]))
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            arms = runner.run(compare((without, audited), pair, options.seconds))
            time.sleep(0.5)
            took = [f"{arm.processor_ms:.2f}" for arm in arms]
        kept = written_and_lost(audited)
    row = [disk.name, sum(map(len, arms[0].blocks)), sum(map(len, arms[1].blocks))]
    for share in (0.5, 0.99):
        plain, with_audit = (arm.percentile(share) for arm in arms)
        low, high = interval(*arms, share)
        row += [f"{plain:.2f}", f"{with_audit:.2f}", f"{with_audit / plain:.3f} [{low:.3f}, {high:.3f}]"]
    if set(arms[0].ends) != set(arms[1].ends) or len(arms[0].ends) != len(pair):
        print(f"FAULT {disk.name}: without {dict(arms[0].ends)}, with {dict(arms[1].ends)}")
        return None
    return [str(cell) for cell in [*row, *took, kept]]


def price(folder: Path, lines: int) -> Iterator[str]:
    """Yield what a line costs where requests are answered, and on the audit's thread, by the input that it keeps."""
    runtime = Runtime.open(tiny_bundle.make(folder / "bundle"), threads=1)
    readings = runtime.read(tiny_bundle.striped(1))
    judge = Judge(Policy(tiny_bundle.REJECT_RATE, tiny_bundle.FLAG_RATE), runtime.calibration)
    found = judge.judged(readings, runtime.calibration, np.zeros(1))
    outcome = Outcome("tiny", "reject", ("reject",), "reject", found=found)
    names = {"id": "0123456789abcdef", "request_id": "7", "principal": "somebody"}
    for shape in (None, (3, 32, 32), (3, 224, 224)):
        written = LogOfEvents(AuditLog(folder / str(shape), 1 << 26, 3600.0), AuditMetrics(CollectorRegistry()))
        audit = Audit((written,), keeps_inputs=shape is not None)
        images = np.random.default_rng(0).random((1, *(shape or (1,)))).astype(np.float32)
        audited = AuditedInput(images, np.zeros(1, dtype=np.bool_), 0.0)
        here, began, both = 0.0, time.thread_time(), time.process_time()
        for _ in range(lines):
            start = time.thread_time()
            audit.judged(names, outcome, found, "refused", audited)
            here += time.thread_time() - start
            while written.background.waiting:
                time.sleep(0.0005)  # as requests do, it leaves the thread its turn
        written.background.close(20.0)
        there = time.process_time() - both - (time.thread_time() - began)
        what = "no input" if shape is None else f"an input of {' x '.join(map(str, shape))} float32"
        yield f"{what}: {1e6 * here / lines:.0f} us where requests are answered, {1e6 * there / lines:.0f} us beside"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--price", action="store_true")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each disk")
    parser.add_argument("--only", type=int, nargs="+", default=range(len(DISKS)), help="disks, by number from 0")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if (options.bundle is None) != (options.model is None):
        parser.error("--bundle and --model go together")
    if options.quick:
        options.seconds, options.only = 2.0, (1,)
    rows, wrong = [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.price or options.quick:
            print("\n".join(price(folder / "price", 20 if options.quick else 300)))
        if options.price:
            return
        if options.bundle is None:
            served = tiny(folder)
        else:
            served = (options.bundle, options.model, Bundle.open(options.bundle).manifest.model.name)
        for number in options.only:
            found = on(DISKS[number], folder / str(number), served, options)
            wrong |= found is None
            if isinstance(found, str):
                print(found)
            elif found is not None:
                rows.append(found)
    heads = (
        "disk",
        "without",
        "with",
        "p50 ms",
        "with",
        "ratio",
        "p99 ms",
        "with",
        "ratio",
        "CPU ms",
        "with",
        "written and lost",
    )
    print(table(heads, rows))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
