"""For maintainers: a guard that serves for long, at 70 % of what it can, every kind of call at all its doors.

    python -m tests.bench.soak              20 minutes: two to warm up, then the first and the last five are compared
    python -m tests.bench.soak --quick      twelve seconds; memory and books are judged, times are only told
    python -m tests.bench.soak --bundle demo/bundle --model demo/model.onnx

Capacity is the most that closed loops of the same calls get answered. Then calls come by chance (Poisson) at 70 % of
that, whatever becomes of those before: small, middle and large requests, raw, typed and packed, attacks, calls that are
taken back, deadlines that nobody can keep, and messages that are wrong. Judged are resident memory (flat within 2 %
after the warm-up), the 99th percentile of the last five minutes (at most 1.5 times that of the first five after the
warm-up), that each call ends with a status that its kind may have, and that the guard's books account for all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guard.bundle import Bundle
from guard.serve.event_loop import EventLoop
from tests.bench.sidecar import ROOT, Guarded, resident_mib, serving, started, table, tiny, until_listening
from tests.bench.soak_doors import ENTRANCES, Entrance, Kind, kinds

LOAD_SHARE = 0.7
IN_FLIGHT = 8
MAX_OPEN_CALLS = 2000
MAX_RSS_FACTOR, MAX_P99_FACTOR = 1.02, 1.5
QUICK_RSS_FACTOR = 1.10  # a young heap still grows
MAX_SHED_SHARE = 0.05
SHED = frozenset({"RESOURCE_EXHAUSTED"})


@dataclass
class Record:
    """All that a run saw: how calls ended by kind, when and after how long, and the memory of the guard."""

    ends: dict[str, Counter[str]] = field(default_factory=dict)
    answers: list[tuple[float, float]] = field(default_factory=list)  # (end, seconds) of calls that were answered
    memory: list[tuple[float, float]] = field(default_factory=list)  # (time, MiB)
    open_calls: int = 0
    skipped: int = 0  # arrivals for which this client had no room: the machine is too slow for the test

    def between(self, begin: float, end: float) -> tuple[list[float], list[float]]:
        """The seconds of answers, sorted, and the memory within a window."""
        seconds = sorted(took for at, took in self.answers if begin <= at < end)
        return seconds, [mib for at, mib in self.memory if begin <= at < end]


async def make(entrance: Entrance, name: str, kind: Kind, record: Record) -> None:
    began = time.monotonic()
    record.open_calls += 1
    try:
        end = await entrance.call(kind)
    finally:
        record.open_calls -= 1
    record.ends.setdefault(name, Counter())[end] += 1
    if end == "OK":
        record.answers.append((time.monotonic(), time.monotonic() - began))


async def capacity(entrances: Sequence[Entrance], mix: Mapping[str, Kind], seconds: float, record: Record) -> float:
    """Calls a second that closed loops get done."""
    chance, end, made = random.Random(1), time.monotonic() + seconds, 0
    names, shares = list(mix), [kind.share for kind in mix.values()]

    async def client(number: int) -> None:
        nonlocal made
        while time.monotonic() < end:
            (name,) = chance.choices(names, shares)
            await make(entrances[number % len(entrances)], name, mix[name], record)
            made += 1

    await asyncio.gather(*(client(number) for number in range(IN_FLIGHT)))
    return made / seconds


async def load(
    entrances: Sequence[Entrance], mix: Mapping[str, Kind], rate: float, seconds: float, record: Record, process: int
) -> None:
    """Let calls come at a rate, and take the guard's memory once a second."""
    chance, tasks = random.Random(2), set()
    names, shares = list(mix), [kind.share for kind in mix.values()]
    began = due = time.monotonic()
    sampled = 0.0
    while (now := time.monotonic()) < began + seconds:
        if now >= sampled + 1:
            record.memory.append((now, resident_mib(process)))
            sampled = now
        while due <= now:
            due += chance.expovariate(rate)
            if record.open_calls >= MAX_OPEN_CALLS:
                record.skipped += 1
                continue
            (name,) = chance.choices(names, shares)
            task = asyncio.create_task(make(chance.choice(entrances), name, mix[name], record))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(min(0.005, max(0.0, due - time.monotonic())))
    await asyncio.gather(*tasks)


async def run(guard: Guarded, bundle: Bundle, options: argparse.Namespace) -> list[str]:
    """Run it all, print what was found, and return the faults."""
    mix, record = kinds(bundle), Record()
    async with AsyncExitStack() as stack:
        entrances = [await ENTRANCES[name](guard, stack) for name in options.doors]
        limit = await capacity(entrances, mix, 2.0 if options.quick else 20.0, record)
        seconds = options.minutes * 60
        print(f"{limit:.0f} calls/s at most, {LOAD_SHARE * limit:.0f} come, for {seconds:.0f} s, at {options.doors}")
        began = time.monotonic()
        await load(entrances, mix, LOAD_SHARE * limit, seconds, record, guard.process.pid)
    await asyncio.sleep(1.0)  # for the last calls to end on the guard's side, too
    books = await asyncio.to_thread(guard.books)
    warm, window = began + seconds / 10, seconds / 4
    judged = judge(record, began, warm, window, seconds, options)
    return [*judged, *account(record, books, quick=options.quick), *wrong_ends(record, mix)]


def judge(
    record: Record, began: float, warm: float, window: float, seconds: float, options: argparse.Namespace
) -> list[str]:
    """Print the windows, and return what is not as it should be in time and memory."""
    rows, windows = [], []
    for name, begin in (("first", warm), ("last", began + seconds - window)):
        took, memory = record.between(begin, begin + window)
        if not took or not memory:
            return [f"the {name} window has no answers"]
        p99, mib = 1e3 * took[int(0.99 * len(took))], statistics.median(memory)
        windows.append((p99, mib))
        rows.append([name, len(took), f"{1e3 * took[len(took) // 2]:.1f}", f"{p99:.1f}", f"{mib:.1f}"])
    print(table((f"window of {window:.0f} s", "answers", "p50 ms", "p99 ms", "RSS MiB"), rows))
    (first_p99, first_mib), (last_p99, last_mib) = windows
    print(f"RSS last/first {last_mib / first_mib:.4f}, p99 last/first {last_p99 / first_p99:.2f}")
    faults = []
    most = QUICK_RSS_FACTOR if options.quick else MAX_RSS_FACTOR
    if last_mib > most * first_mib:
        faults.append(f"memory grew from {first_mib:.1f} to {last_mib:.1f} MiB, more than {most:g} times")
    if not options.quick and last_p99 > MAX_P99_FACTOR * first_p99:
        faults.append(f"the 99th percentile rose from {first_p99:.1f} to {last_p99:.1f} ms")
    return faults


def account(record: Record, books: Counter[str], *, quick: bool) -> list[str]:
    """Print how calls ended, and return what the books do not account for, and ends that no such call may have."""
    mix_ends = {name: dict(ends) for name, ends in record.ends.items()}
    print(table(("kind", "ended"), [[name, ends] for name, ends in mix_ends.items()]))
    total: Counter[str] = sum(record.ends.values(), Counter())
    sent = total.total()
    print(f"{sent} calls, books: {dict(books)}, {record.skipped} not sent for want of room here")
    given_up = total["CANCELLED"] + total["DEADLINE_EXCEEDED"]
    faults = []
    if shed := sum(total[code] for code in SHED):
        print(f"{shed} were shed")
    if not quick and shed > MAX_SHED_SHARE * sent:
        faults.append(f"{shed} of {sent} calls were shed at {LOAD_SHARE:.0%} of capacity")
    if not total["OK"] <= books["pass"] <= total["OK"] + given_up:
        faults.append(f"{total['OK']} were answered, the books have {books['pass']} as passed")
    if not sent - given_up <= books.total() <= sent:
        faults.append(f"{sent} were sent and {given_up} given up, the books have {books.total()}")
    return faults


def wrong_ends(record: Record, mix: Mapping[str, Kind]) -> list[str]:
    """The ends that a kind of call must not have."""
    return [
        f"{name}: {count} ended as {end}"
        for name, ends in record.ends.items()
        for end, count in ends.items()
        if end not in mix[name].ends | SHED
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--doors", nargs="+", choices=ENTRANCES, help="all, but with --bundle that of gRPC alone")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if (options.bundle is None) != (options.model is None):
        parser.error("--bundle and --model go together")
    if options.bundle is not None and options.doors not in (None, ["grpc"]):
        parser.error("the model server for --bundle has the door of gRPC alone; leave --doors or --bundle out")
    options.doors = options.doors or (list(ENTRANCES) if options.bundle is None else ["grpc"])
    options.minutes = options.minutes or (0.2 if options.quick else 20.0)
    return options


@contextmanager
def all_doors(bundle: Path) -> Iterator[Guarded]:
    """A guard with every door, before the tests' model server of all of them."""
    with until_listening("tests.bench.soak_upstream") as (_, lines):
        flags = ("--bundle", bundle, "--upstream", lines["inference"], "--threads", "1")
        settings = {"GUARD_REST_LISTEN": "127.0.0.1:0", "GUARD_REST_UPSTREAM": lines["rest"]}
        with started(ROOT, None, "serve", *flags, settings=settings) as (process, found):
            yield Guarded(found["inference"], found["metrics"], process, found["rest"])


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if options.bundle is None:
            found, _, _ = tiny(Path(folder))
            guard = stack.enter_context(all_doors(found))
        else:
            found = options.bundle
            guard = stack.enter_context(serving(found, options.model, Bundle.open(found).manifest.model.name))
        runner = stack.enter_context(asyncio.Runner(loop_factory=EventLoop))
        faults = runner.run(run(guard, Bundle.open(found), options))
    for fault in faults:
        print(f"FAULT {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
