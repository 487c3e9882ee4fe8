"""For maintainers: false alarms of the drift watch on clean replay, and after how many items it sees a change.

    python -m tests.bench.drift BUNDLE POOLS [--only replay,whole,changes] [--runs 1000] [--items 1000000]
    python -m tests.bench.drift --quick

POOLS is what `tests.bench.traffic` wrote. Clean replay resamples the readings of real clean items, of calibration and
of test together, into a calibration set and a stream for every run; it is looked at after every 50 items, and a run
counts where it ever alarmed. The risk alone goes to 10^6 items, all tests together to 2,000. Beside it stands the same
martingale against a fixed calibration set, which is what this must find wanting. Changed items are replayed in a random
order after clean ones. Near-copies are not sought, since the same items come again and again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.calibration import Calibration
from guard.drift.monitor import BLOCK_ITEMS, DriftMonitor
from guard.drift.statistics import LEVEL_BINS
from guard.fusion import Floats
from guard.runtime import Runtime
from tests.bench.traffic import ATTACKED, Pool, load, read
from tests.drift.clean_replay import alarm_shares, first_alarms

FIRST_LOOKS = (1_000, 10_000, 100_000, 1_000_000)
PROMISES = (0.01, 0.05)
CHUNK = 1000
MOST_CHANGED = 20_000


def replay(risks: Floats, *, runs: int, items: int, calibration_items: int, fixed_runs: int) -> Iterator[str]:
    """Yield the table of alarms on clean replay, of ranks among all and of ranks among a fixed set."""
    _, bins = np.unique(np.floor(risks * LEVEL_BINS), return_inverse=True)
    ends = [end for end in FIRST_LOOKS if end <= items]
    yield f"{'runs that alarmed, clean replay of the risk':52}" + "".join(f"{f'{end:,} items':>16}" for end in ends)
    for words, many, fixed in (("among all so far", runs, False), ("among a fixed set", fixed_runs, True)):
        found = first_alarms(bins, runs=many, items=items, calibration_items=calibration_items, seed=0, fixed=fixed)
        for promise in PROMISES:
            shares = alarm_shares(found, ends, promise)
            label = f"ranks {words}, promised {100 * promise:g} %, {many} runs"
            yield f"{label:52}" + "".join(f"{f'{100 * shares[end]:.1f} %':>16}" for end in ends)


def calibrated_on(calibration: Calibration, pool: Pool, index: NDArray[np.int64]) -> Calibration:
    return replace(calibration, clean_risks=pool.risk[index], clean_scores=pool.scores[index])


def clean_watch(
    calibration: Calibration, classes: int, clean: Pool, *, items: int, seed: int, probability: float
) -> DriftMonitor:
    """A monitor with a calibration set of its own, after so many clean items."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(clean), calibration.items)
    monitor = DriftMonitor(
        calibrated_on(calibration, clean, drawn), classes, probability=probability, generator=generator
    )
    for start in range(0, items, CHUNK):
        feed(monitor, clean, generator.choice(len(clean), min(CHUNK, items - start)))
    return monitor


def feed(monitor: DriftMonitor, pool: Pool, index: NDArray[np.int64]) -> None:
    monitor.see(np.zeros((len(index), 0)), pool.take(index).readings)


def whole_watch(
    calibration: Calibration, classes: int, clean: Pool, *, runs: int, items: int, probability: float
) -> Iterator[str]:
    """Yield the share of whole monitors, all their tests together, that alarm on clean replay."""
    watches = (
        clean_watch(calibration, classes, clean, items=items, seed=seed, probability=probability)
        for seed in range(runs)
    )
    alarms = sum(watch.alarm is not None for watch in watches)
    yield f"all tests together, promised {100 * probability:g} %: {alarms} of {runs} runs of {items:,} items alarmed"


def mixes(clean: Pool, pools: Mapping[str, Pool]) -> dict[str, tuple[tuple[float, Pool], ...]]:
    """What the traffic becomes, by name: shares of pools."""
    found = {name: ((1.0, pool),) for name, pool in pools.items() if name not in ("test", "calibrate", ATTACKED)}
    rare, usual = (clean.take(np.flatnonzero(there)) for there in (clean.labels < 2, clean.labels >= 2))
    found["class mix: two of ten classes twice as often"] = ((0.4, rare), (0.6, usual))
    found["class mix: two of ten classes alone"] = ((1.0, rare),)
    for share in (0.01, 0.1):
        found[f"{100 * share:g} % attacked, {ATTACKED}"] = ((share, pools[ATTACKED]), (1 - share, clean))
    return found


def until_seen(
    monitor: DriftMonitor, mix: tuple[tuple[float, Pool], ...], most: int, generator: np.random.Generator
) -> tuple[float, str]:
    """The number of items until the monitor alarms, and by which test; infinite where it does not within `most`."""
    before = monitor.items
    for _ in range(0, most, BLOCK_ITEMS):
        parts = generator.choice(len(mix), BLOCK_ITEMS, p=[share for share, _ in mix])
        counts = np.bincount(parts, minlength=len(mix))
        chosen = [pool.take(generator.choice(len(pool), n)) for n, (_, pool) in zip(counts, mix, strict=True)]
        feed(monitor, Pool.joined(chosen), generator.permutation(BLOCK_ITEMS))
        if monitor.alarm is not None:
            return monitor.alarm.items - before, monitor.alarm.statistic
    return float("inf"), "nothing"


def changes(
    calibration: Calibration, classes: int, clean: Pool, pools: Mapping[str, Pool], *, runs: int, before: int, most: int
) -> Iterator[str]:
    """Yield the table: after how many items each change is seen, and by what most often."""
    watches = [
        clean_watch(calibration, classes, clean, items=before, seed=1000 + run, probability=0.01) for run in range(runs)
    ]
    calm = [watch for watch in watches if watch.alarm is None]
    yield f"{f'items until seen, after {before:,} clean ones':52}{'median':>10}{'90 %':>10}{'unseen':>8}  first seen in"
    for name, mix in mixes(clean, pools).items():
        seen = [
            until_seen(copy.deepcopy(watch), mix, most, np.random.default_rng(run)) for run, watch in enumerate(calm)
        ]
        counts, tests = np.asarray([count for count, _ in seen]), Counter(test for _, test in seen)
        middle, late = np.quantile(counts, [0.5, 0.9], method="higher")
        unseen = int(np.isinf(counts).sum())
        names = ", ".join(f"{test} {times}" for test, times in tests.most_common(3))
        shown = [f">{most}" if np.isinf(one) else f"{one:.0f}" for one in (middle, late)]
        yield f"{name:52}{shown[0]:>10}{shown[1]:>10}{unseen:>5}/{len(calm)}  {names}"


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny bundle: no figures to quote. Raises AssertionError where a promise is broken."""
    from tests.serve import tiny_bundle

    with tempfile.TemporaryDirectory() as name:
        runtime = Runtime.open(tiny_bundle.make(Path(name) / "bundle"), threads=1)
        items = tiny_bundle.clean(4000, seed=60)
        labels = np.arange(4000) % 10
        clean = read(runtime, items, labels)
        pools = {
            "brighter": read(runtime, (items + np.float32(0.05)).clip(0, 1), labels),
            ATTACKED: read(runtime, tiny_bundle.striped(200), labels[:200]),
        }
        yield from replay(clean.risk, runs=200, items=10_000, calibration_items=500, fixed_runs=50)
        calibration = runtime.calibration
        yield from whole_watch(calibration, 3, clean, runs=20, items=1000, probability=0.05)
        yield from changes(calibration, 3, clean, pools, runs=3, before=1000, most=2000)


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        print("\n".join(quick()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pools", type=Path)
    parser.add_argument("--only", default="replay,whole,changes")
    parser.add_argument("--runs", type=int, default=1000, help="of clean replay")
    parser.add_argument("--fixed-runs", type=int, default=200, help="of clean replay against a fixed set")
    parser.add_argument("--items", type=int, default=1_000_000, help="of each run of clean replay")
    parser.add_argument("--change-runs", type=int, default=20)
    given = parser.parse_args(arguments)
    bundle = Bundle.open(given.bundle)
    calibration, classes = bundle.calibration, bundle.manifest.model.output.classes
    pools = load(given.pools)
    clean = Pool.joined([pools["calibrate"], pools["test"]])
    parts: dict[str, Iterator[str]] = {
        "replay": replay(
            clean.risk,
            runs=given.runs,
            items=given.items,
            calibration_items=calibration.items,
            fixed_runs=given.fixed_runs,
        ),
        "changes": (
            line
            for before in (0, 10_000)
            for line in changes(
                calibration, classes, clean, pools, runs=given.change_runs, before=before, most=MOST_CHANGED
            )
        ),
        "whole": whole_watch(calibration, classes, clean, runs=given.runs, items=2000, probability=0.05),
    }
    for name in given.only.split(","):
        began = time.process_time()
        for line in parts[name]:
            print(line, flush=True)
        print(f"    {name}: {time.process_time() - began:.0f} s of one core", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
