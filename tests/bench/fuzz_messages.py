"""For maintainers: a differential fuzz of the guard's reading of ModelInfer against protobuf and numpy.

    python -m tests.bench.fuzz_messages --messages 1000000 --seed 0
    python -m tests.bench.fuzz_messages --seed 0 --only 4711       this one alone, its bytes in full

Whatever the guard accepts has to be the tensor that a model server reads, bit for bit; whatever it refuses, it refuses
as one of its own errors and in time. Exits with 1 on any other, or when it accepted too few for that to say anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from guard.manifest import InputSpec
from tests.serve.reference_reading import judge, request_class
from tests.serve.wire_fields import SPECS
from tests.serve.wire_mutations import chosen, mutated

QUICK_MESSAGES = 5_000
CHUNK_MESSAGES = 2_000
MIN_ACCEPTED = 0.10  # share; below it the fuzz proves nothing
SHOWN_FAULTS = 5  # of each sort; the others are counted
PROGRESS_S = 10.0


@dataclass
class Tally:
    """What became of some messages."""

    outcomes: Counter[str] = field(default_factory=Counter)
    mutations: Counter[tuple[str, str]] = field(default_factory=Counter)  # (mutation, accepted or refused)
    sorts: Counter[str] = field(default_factory=Counter)  # of faults: what they say, without its numbers
    faults: list[tuple[int, str]] = field(default_factory=list)  # a few of each sort
    slowest: tuple[float, int] = (0.0, -1)  # seconds of processor time, number

    @property
    def messages(self) -> int:
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.mutations += other.mutations
        self.slowest = max(self.slowest, other.slowest)
        self.sorts += other.sorts
        for number, what in other.faults:
            self.show(number, what)

    def fault(self, number: int, what: str) -> None:
        self.sorts[sort_of(what)] += 1
        self.show(number, what)

    def show(self, number: int, what: str) -> None:
        if sum(sort_of(other) == sort_of(what) for _, other in self.faults) < SHOWN_FAULTS:
            self.faults.append((number, what))


def sort_of(what: str) -> str:
    """A fault without its numbers and quotations."""
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d+", "n", what))


def message(seed: int, number: int) -> tuple[bytes, InputSpec, list[str]]:
    """Message `number`, whom it is for, and how it was changed."""
    rng = Random(f"{seed}/{number}")
    spec, names = rng.choice(SPECS), chosen(rng)
    return mutated(spec, names, rng), spec, names


def fuzz(task: tuple[int, int, int]) -> Tally:
    """Judge the messages of one seed from the first number up to the last."""
    seed, first, last = task
    tally = Tally()
    for number in range(first, last):
        wire, spec, names = message(seed, number)
        found = judge(wire, spec)
        tally.outcomes[found.outcome] += 1
        verdict = "accepted" if found.outcome == "accepted" else "refused"
        tally.mutations.update((name, verdict) for name in set(names) or {"none"})
        tally.slowest = max(tally.slowest, (found.seconds, number))
        if found.fault:
            tally.fault(number, found.fault)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.only is not None:
        return one(options.seed, options.only)
    count = min(options.messages, QUICK_MESSAGES) if options.quick else options.messages
    began = time.monotonic()
    found = everything(options.seed, count, options.processes, options.minutes)
    report(found, time.monotonic() - began)
    for number, fault in found.faults:
        print(f"WRONG    --seed {options.seed} --only {number}: {fault}")
    for sort, times in found.sorts.most_common():
        print(f"WRONG    {times} times: {sort}")
    few = found.outcomes["accepted"] < MIN_ACCEPTED * found.messages
    if few:
        print(f"WRONG    fewer than {MIN_ACCEPTED:.0%} were accepted: the comparison says little")
    return int(bool(found.sorts) or few)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fuzz_messages", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MESSAGES} messages")
    parser.add_argument("--only", type=int, help="this message alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0, help="after so long it stops")
    return parser.parse_args(arguments)


def everything(seed: int, count: int, processes: int, minutes: float) -> Tally:
    """All messages, in processes; progress is shown, and the time is bounded."""
    found, began = Tally(), time.monotonic()
    shown = began
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for tally in pool.imap_unordered(fuzz, tasks(seed, count)):
            found.add(tally)
            now = time.monotonic()
            if now - shown >= PROGRESS_S:
                shown = now
                done = f"{now - began:6.0f} s  {found.messages} of {count}, {found.sorts.total()} faults"
                print(done, file=sys.stderr, flush=True)
            if now - began > minutes * 60:
                break
    return found


def tasks(seed: int, count: int) -> Iterator[tuple[int, int, int]]:
    for first in range(0, count, CHUNK_MESSAGES):
        yield seed, first, min(first + CHUNK_MESSAGES, count)


def report(found: Tally, seconds: float) -> None:
    print(f"{'mutation':<20}{'accepted':>10}{'refused':>10}")
    for name in sorted({name for name, _ in found.mutations}):
        print(f"{name:<20}{found.mutations[name, 'accepted']:>10}{found.mutations[name, 'refused']:>10}")
    print(f"messages  {found.messages} in {seconds:.0f} s")
    for outcome, times in found.outcomes.most_common():
        print(f"{outcome.lower():<20}{times:>10}  {times / max(found.messages, 1):.1%}")
    print(f"slowest   {found.slowest[0] * 1000:.1f} ms of processor time, message {found.slowest[1]}")


def one(seed: int, number: int) -> int:
    """Judge one message, and show it."""
    wire, spec, names = message(seed, number)
    found = judge(wire, spec)
    print(f"{spec.datatype} {spec.shape} {spec.layout}; {', '.join(names) or 'valid'}; {len(wire)} bytes")
    print(wire.hex() if len(wire) <= 4096 else f"{wire[:2048].hex()} ... {wire[-2048:].hex()}")
    print(f"{found.outcome}, {found.seconds * 1000:.2f} ms of processor time; fault: {found.fault}")
    return int(bool(found.fault))


if __name__ == "__main__":
    request_class()  # here, once, says what to build where something is missing
    sys.exit(main())
