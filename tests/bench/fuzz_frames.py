"""For maintainers: seeded sequences of frames, lawful and not, against a guard process that others are using.

    python -m tests.bench.fuzz_frames --sequences 10000 --seed 0
    python -m tests.bench.fuzz_frames --seed 0 --only 4711       this one alone

Loopback only. Exits with 1 when the guard died, stopped listening, grew beyond its bounds or leaked an exception, or
when the bystander failed or waited longer than the limit. Every fault names the sequence that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.serve import tiny_bundle
from tests.serve.endurance import Findings, Limits, Progress, endure

QUICK_SEQUENCES = 60
PROGRESS_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    count = min(options.sequences, QUICK_SEQUENCES) if options.quick else options.sequences
    numbers = range(options.first, options.first + count) if options.only is None else [options.only] * options.times
    limits = Limits(options.limit_ms, options.rss_mib, options.faults, options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle.make(Path(folder) / "bundle").path
        found = endure(
            bundle, Path(folder), seed=options.seed, numbers=numbers, limits=limits, progress=progress_lines()
        )
    report(found, limits)
    for fault in found.faults:
        where = f"--seed {options.seed} --only {fault.number}" if fault.number is not None else "after the last"
        print(f"WRONG    {where} ({fault.kind or 'no sequence'}): {fault.what}")
    return int(bool(found.faults))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fuzz_frames", description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first sequence")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEQUENCES} sequences")
    parser.add_argument("--only", type=int, help="this sequence alone")
    parser.add_argument("--times", type=int, default=1, help="how often to send the one of --only")
    parser.add_argument("--limit-ms", type=float, default=100.0, help="of the bystander; 500 on a loaded machine")
    parser.add_argument("--rss-mib", type=float, default=1024.0)
    parser.add_argument("--faults", type=int, default=30, help="after so many it stops")
    parser.add_argument("--minutes", type=float, default=60.0, help="after so long it stops")
    return parser.parse_args(arguments)


def progress_lines() -> Progress:
    """Shows how far it is, every few seconds."""
    began = shown = time.monotonic()

    def show(left: int, found: Findings) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            print(
                f"{shown - began:6.0f} s  {found.sequences.total()} sent, {left} to go, {len(found.faults)} faults, "
                f"{found.last.get('rss_mib', 0):.0f} MiB",
                file=sys.stderr,
                flush=True,
            )

    return show


def report(found: Findings, limits: Limits) -> None:
    print(f"{'kind':<20}{'sent':>6}  how its streams ended")
    for name, count in sorted(found.sequences.items()):
        words = ", ".join(f"{word} {times}" for word, times in found.words[name].most_common(6))
        print(f"{name:<20}{count:>6}  {words}")
    total = found.sequences.total()
    print(f"sent      {total} sequences in {found.seconds:.0f} s to {found.guards} guard(s)")
    waits = ", ".join(f"{method} {seconds * 1000:.1f} ms" for method, seconds in sorted(found.longest.items()))
    print(f"bystander {found.calls} calls, {found.slow} over {limits.wait_ms:g} ms; longest {waits}")
    peaks, last = found.peaks, found.last
    print(f"memory    {peaks.get('rss_peak_mib', 0):.0f} MiB at most, {last.get('rss_mib', 0):.0f} MiB at the end")
    for key in ("descriptors", "threads"):
        print(f"{key:<12}{peaks.get(key, 0):.0f} at most, {last.get(key, 0):.0f} at the end")
    print("log       " + (", ".join(f"{event} {count}" for event, count in found.events.most_common(12)) or "nothing"))
    for event, text in found.examples.items():
        if event in ("library", "no JSON", "internal"):
            print(f"          {event}: {text[:200]}")
    for details, count in found.details.most_common(12):
        print(f"told      {count:>6} UNKNOWN or INTERNAL: {details[:120]}")
    print("books")
    for name, value in sorted(found.books.items()):
        print(f"  {name} {value:g}")


if __name__ == "__main__":
    sys.exit(main())
