"""A guard in a process that sequences of frames are sent to, and what is watched meanwhile.

How it works: guard, model server and bystander are processes. After each sequence the guard has to be alive, to take a
new connection and to answer on it; what the bystander waited is laid to the sequence that ran at the time; memory,
descriptors and threads are read from /proc. A guard that is lost is started anew, so that one fault does not hide the
next.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.bystander import BYSTANDER
from tests.serve.frames import unary
from tests.serve.guarded import config_for
from tests.serve.odd_calls import LIVE
from tests.serve.processes import Process, guard_process, model_process, process
from tests.serve.sequences import Ending, kind, play

START_S = 60.0
PROBE_S = 30.0  # for the guard to answer after a sequence: a stall is the bystander's to tell, not the end
SETTLE_S = 15.0  # for descriptors and threads to go back
SPARE_DESCRIPTORS, SPARE_THREADS = 32, 16  # above what they were after the warm-up
WARM_SEQUENCES = 50
REMEMBERED_SEQUENCES = 200  # whose times are kept, to lay a wait to one of them
LEAKS = (
    "the guard failed",
    "Unexpected <class",
    "Traceback",
)  # in what a client is told: an exception that nobody meant


@dataclass(frozen=True)
class Limits:
    """What a run must not exceed."""

    wait_ms: float = 100.0
    rss_mib: float = 1024.0
    faults: int = 30
    minutes: float = 60.0


@dataclass(frozen=True)
class Fault:
    """What went wrong during one sequence, or after the last (None)."""

    number: int | None
    kind: str
    what: str


@dataclass
class Findings:
    """What a run saw."""

    faults: list[Fault] = field(default_factory=list)
    sequences: Counter[str] = field(default_factory=Counter)  # by kind
    words: dict[str, Counter[str]] = field(default_factory=dict)  # kind -> how its streams ended
    calls: int = 0  # of the bystander
    longest: dict[str, float] = field(default_factory=dict)  # method -> longest wait of the bystander in seconds
    slow: int = 0  # of its calls
    peaks: dict[str, float] = field(default_factory=dict)  # rss_mib, descriptors, threads
    last: dict[str, float] = field(default_factory=dict)
    books: Counter[str] = field(default_factory=Counter)  # the guard's counters that moved
    events: Counter[str] = field(default_factory=Counter)  # of the guard's log
    examples: dict[str, str] = field(default_factory=dict)  # event -> what the first of its lines says
    details: Counter[str] = field(default_factory=Counter)  # what came with UNKNOWN and INTERNAL
    guards: int = 0
    seconds: float = 0.0

    def fault(self, number: int | None, name: str, what: str) -> None:
        """Note a fault, once for each sequence."""
        found = Fault(number, name, what)
        if found not in self.faults:
            self.faults.append(found)

    def note(self, name: str, ending: Ending) -> None:
        self.sequences[name] += 1
        self.words.setdefault(name, Counter()).update(ending.words)
        self.details.update(ending.details)

    def seen(self, sample: dict[str, float]) -> None:
        self.last = sample
        self.peaks = {key: max(value, self.peaks.get(key, 0.0)) for key, value in sample.items()}


Progress = Callable[[int, Findings], None]


def endure(
    bundle: Path, folder: Path, *, seed: int, numbers: Iterable[int], limits: Limits, progress: Progress
) -> Findings:
    """Send the sequences of these numbers to a guard of `bundle`; `folder` is for the model server's file."""
    findings, left = Findings(), deque(numbers)
    began = time.monotonic()
    with model_process(folder) as model, reading(model, lambda line: None) as lines:
        upstream = lines.until("listening")["inference"]
        while left and len(findings.faults) < limits.faults and time.monotonic() - began < limits.minutes * 60:
            with subject(bundle, upstream, findings, limits) as guard:
                findings.guards += 1
                guard.take(left, seed, began, progress)
    findings.seconds = time.monotonic() - began
    return findings


@contextmanager
def subject(bundle: Path, upstream: str, findings: Findings, limits: Limits) -> Iterator[WatchedGuard]:
    """A ready guard and its bystander."""
    with guard_process(config_for(bundle, upstream)) as guard:
        watched = WatchedGuard(guard, findings, limits)
        with reading(guard, watched.log_line) as log:
            watched.address = log.until("listening")["inference"]
            watched.metrics = log.until("listening")["metrics"]
            log.until("ready")
            with (
                process(BYSTANDER, {"address": watched.address}) as bystander,
                reading(bystander, watched.call_line) as calls,
            ):
                calls.until("call")
                yield watched


@contextmanager
def reading(process: Process, take: Callable[[dict[str, Any]], None]) -> Iterator[Lines]:
    """Hand on each line of a process within the block, and kill it at the end."""
    lines = Lines(process, take)
    lines.thread.start()
    try:
        yield lines
    finally:
        process.kill()
        lines.thread.join()


class Lines:
    """What a process writes, read by a thread as it comes: a pipe that nobody reads would stop the process."""

    def __init__(self, process: Process, take: Callable[[dict[str, Any]], None]) -> None:
        self.process, self.take = process, take
        self.first: dict[str, dict[str, Any]] = {}  # event -> its first line
        self.thread = threading.Thread(target=self.read, daemon=True)

    def read(self) -> None:
        assert self.process.popen.stderr is not None
        for line in self.process.popen.stderr.buffer:  # as bytes: a library may write any
            try:
                found = json.loads(line)
            except ValueError:
                found = {"event": "no JSON", "text": line.decode(errors="replace").rstrip()}
            self.take(found)
            self.first.setdefault(found["event"], found)

    def until(self, event: str) -> dict[str, Any]:
        """The first line of that event, as soon as it is there."""
        deadline = time.monotonic() + START_S
        while event not in self.first:
            assert time.monotonic() < deadline, f"the process never wrote {event!r}: {self.first}"
            assert self.process.popen.poll() is None, f"the process ended without {event!r}: {self.first}"
            time.sleep(0.01)
        return self.first[event]


@dataclass
class WatchedGuard:
    """One guard process, as long as it is of use."""

    guard: Process
    findings: Findings
    limits: Limits
    address: str = ""
    metrics: str = ""
    lost: bool = False
    warm: dict[str, float] = field(default_factory=dict)
    spans: deque[tuple[float, int, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_SEQUENCES))
    last_call_began: float = 0.0

    # what the processes write, each from a thread of its own

    def log_line(self, line: dict[str, Any]) -> None:
        event = line["event"]
        self.findings.events[event] += 1
        self.findings.examples.setdefault(event, str(line.get("text") or line.get("message") or line.get("cause")))
        if event == "internal":
            self.fault(f"the guard logged an internal failure: {str(line.get('cause'))[:60]}", at=time.monotonic())

    def call_line(self, line: dict[str, Any]) -> None:
        method, began, waited_s, failure = (line[key] for key in ("method", "began", "waited_s", "failure"))
        self.findings.calls += 1
        self.findings.longest[method] = max(waited_s, self.findings.longest.get(method, 0.0))
        if failure and not self.lost:
            self.fault(f"the bystander's {method} failed: {failure}", at=began, until=began + waited_s)
        elif waited_s * 1000 > self.limits.wait_ms and not self.lost:
            self.findings.slow += 1
            self.fault(f"the bystander's {method} waited {waited_s * 1000:.0f} ms", at=began, until=began + waited_s)
        self.last_call_began = began

    def fault(self, what: str, *, at: float, until: float | None = None) -> None:
        """Lay a fault to the sequence that ran for most of that time."""
        spans = list(self.spans)
        ends = [*(began for began, _, _ in spans[1:]), float("inf")][: len(spans)]
        best: tuple[float, int | None, str] = (-1.0, None, "")
        for (began, number, name), end in zip(spans, ends, strict=True):
            shared = min(end, at if until is None else until) - max(began, at)
            if shared >= 0 and shared >= best[0]:
                best = (shared, number, name)
        self.findings.fault(*best[1:], what)

    # what is done to the guard

    def take(self, left: deque[int], seed: int, began: float, progress: Progress) -> None:
        """Play the sequences in `left`, in order, until the guard is lost or a limit is reached."""
        played = 0
        while left and not self.lost and len(self.findings.faults) < self.limits.faults:
            if time.monotonic() - began > self.limits.minutes * 60:
                break
            self.one(seed, left.popleft())
            played += 1
            if played == WARM_SEQUENCES:
                self.warm = sample(self.guard.popen.pid)
            progress(len(left), self.findings)
        if not self.lost:
            self.settle()
            self.findings.books.update(counters(self.metrics))

    def one(self, seed: int, number: int) -> None:
        rng = Random(f"{seed}/{number}")
        name = kind(number, rng)
        self.spans.append((time.monotonic(), number, name))
        try:
            ending = play(self.address, name, rng)
        except OSError:
            ending = Ending(("refused",), ())
        self.findings.note(name, ending)
        for details in ending.details:
            if any(leak in details for leak in LEAKS):
                self.findings.fault(number, name, f"a client was told: {details.partition(';')[0][:120]}")
        self.check(number, name)

    def check(self, number: int, name: str) -> None:
        what = self.probe()
        if what is None:
            now = sample(self.guard.popen.pid)
            self.findings.seen(now)
            if now["rss_mib"] > self.limits.rss_mib:
                what = f"{now['rss_mib']:.0f} MiB of memory"
        if what is not None:
            self.findings.fault(number, name, what)
            self.lost = True

    def probe(self) -> str | None:
        """Why the guard is lost; None when it answers on a new connection."""
        deadline = time.monotonic() + PROBE_S
        while time.monotonic() < deadline:
            if self.guard.popen.poll() is not None:
                return f"the process died with exit code {self.guard.popen.returncode}"
            try:
                if unary(self.address, LIVE, patience_s=2.0).status == 0:
                    return None
            except ConnectionRefusedError:
                self.lost = True  # what the bystander says from here on is no news
                time.sleep(0.05)
                if self.guard.popen.poll() is not None:
                    continue
                return "the listener is gone: connections are refused, and the process lives on"
            except OSError:
                continue
        return f"no answer on a new connection in {PROBE_S:g} s"

    def settle(self) -> None:
        """Wait until the bystander has called once more, and what was opened is closed."""
        end = time.monotonic()
        deadline = end + SETTLE_S
        while time.monotonic() < deadline and (self.last_call_began < end or self.grown()):
            time.sleep(0.05)
        self.findings.seen(sample(self.guard.popen.pid))
        if self.last_call_began < end:
            self.findings.fault(None, "", f"the bystander's last call took more than {SETTLE_S:g} s")
        for what in self.grown():
            self.findings.fault(None, "", what)

    def grown(self) -> list[str]:
        """Descriptors and threads that are many more than after the warm-up."""
        if not self.warm:
            return []
        now = sample(self.guard.popen.pid)
        spare = {"descriptors": SPARE_DESCRIPTORS, "threads": SPARE_THREADS}
        return [
            f"{now[key]:.0f} {key}, {self.warm[key]:.0f} after {WARM_SEQUENCES} sequences"
            for key, most in spare.items()
            if now[key] > self.warm[key] + most
        ]


def sample(process: int) -> dict[str, float]:
    """Memory now and at its largest, descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines())
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "rss_peak_mib": int(status["VmHWM"].split()[0]) / 1024,
        "descriptors": float(sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())),
        "threads": float(status["Threads"]),
    }


def counters(address: str) -> dict[str, float]:
    """The guard's counters that are not zero."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {
        f"{sample.name}{{{', '.join(f'{key}={value}' for key, value in sample.labels.items())}}}": sample.value
        for family in text_string_to_metric_families(text)
        if family.type == "counter" and family.name.startswith("guard_")
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }
