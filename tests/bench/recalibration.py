"""For maintainers: false alarms and detection before and after `guard calibrate`, on traffic that has shifted.

    python -m tests.bench.recalibration BUNDLE POOLS --model MODEL.onnx [--shifts "blur 1 px,JPEG 50"]
    python -m tests.bench.recalibration --quick

POOLS is what `tests.bench.traffic` wrote. All its clean items, shifted, are divided anew for each split into a sample
of traffic and a test; a share of attacked items goes into the sample, and detection is counted on others. Attacks are
PGD of 2 to 8/255 on shifted items, verified. A row shows the mean of the splits, and their lowest and highest. The
stated interval of false alarms runs from the promise to the promise and the share left out: the mean should lie in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.calibration import Calibration
from guard.errors import DataError
from guard.offline.data.grid import snap
from guard.recalibrate import recalibrate
from guard.runtime import Runtime
from guard.session import Session
from guard.traffic_sample import SampledItems, SampleSpec, SampleWriter
from tests.bench.traffic import CHANGES, attacked, load

SHARES = (0.0, 0.005, 0.01, 0.02)  # of the sample that is attacked
UNNOTICED = 0.01
SAMPLE_SHARE = 0.6  # of the clean items that are in the sample
SHIFTS = "blur 1 px,JPEG 50,brightness +15 %"
BATCH = 64

Shares: TypeAlias = list[float]


@dataclass(eq=False)
class RememberingSession:
    """A session that runs each item once, since what a program gives does not depend on any calibration."""

    real: Session
    known: dict[int, list[NDArray[Any]]] = field(default_factory=dict)

    @property
    def session(self) -> Any:
        return self.real.session

    def run(self, outputs: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        keys = [zlib.crc32(image.tobytes()) << 32 | zlib.adler32(image.tobytes()) for image in images]
        missing = [place for place, key in enumerate(keys) if key not in self.known]
        for start in range(0, len(missing), BATCH):
            places = missing[start : start + BATCH]
            for place, *row in zip(places, *self.real.run(outputs, images[places]), strict=True):
                self.known[keys[place]] = row
        return [np.stack(column) for column in zip(*(self.known[key] for key in keys), strict=True)]


def remembering(runtime: Runtime) -> Runtime:
    """The runtime with sessions that remember."""
    sessions: Any = tuple(RememberingSession(one) for one in runtime.sessions)
    return replace(runtime, cascade=replace(runtime.cascade, sessions=sessions))


@dataclass(frozen=True, eq=False)
class Shifted:
    """Shifted traffic: clean items, to be divided, and attacked ones for the sample and for the test."""

    name: str
    clean: NDArray[Any]
    attacked_sample: NDArray[Any]
    attacked_test: NDArray[Any]

    def split(self, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """A sample of traffic and a test, of different items."""
        order, size = np.random.default_rng(seed).permutation(len(self.clean)), int(SAMPLE_SHARE * len(self.clean))
        return self.clean[order[:size]], self.clean[order[size:]]


def store(
    folder: Path, parent: Bundle, clean: NDArray[Any], attacks: NDArray[Any], share: float, generator: Generator
) -> Path:
    """Write the sample with a share of attacked items in it, in a random order."""
    count = round(share * len(clean) / (1 - share))
    images = np.concatenate([clean, attacks[generator.permutation(len(attacks))[:count]]])
    images = images[generator.permutation(len(images))]
    spec = SampleSpec.of(parent.manifest.model.input, share=1.0, bundle=parent.digest, model=parent.manifest.model.name)
    writer = SampleWriter(folder, spec, generator)
    nothing = np.zeros(len(images))
    writer.add(SampledItems(images, nothing.astype(bool), nothing, nothing))
    writer.flush()
    return folder


def shown(shares: Sequence[float]) -> str:
    """The mean of the splits, and their lowest and highest."""
    return f"{100 * np.mean(shares):5.1f} [{100 * min(shares):4.1f},{100 * max(shares):5.1f}]"


def caught(runtime: Runtime, calibration: Calibration, sets: Sequence[NDArray[Any]], rates: Sequence[float]) -> Shares:
    """The shares, by rate and set, of items whose p-value is at most the rate."""
    found = [runtime.cascade.with_calibration(calibration).read(images).p_value for images in sets]
    return [float((one <= rate).mean()) for rate in rates for one in found]


def lines(parent: Bundle, runtime: Runtime, traffic: Iterator[Shifted], *, limit: float, splits: int) -> Iterator[str]:
    """Yield the table: a row for the parent on each shift, and one for each share of attacks in the sample."""
    rates = (parent.manifest.reject_rate, parent.manifest.flag_rate)
    yield f"{'false alarms and attacks caught, %':44}" + "".join(
        f"{f'clean at {100 * rate:g} %':>20}{f'attacked at {100 * rate:g} %':>20}" for rate in rates
    )
    for shifted in traffic:
        for share in (None, *SHARES):
            label = "as it was" if share is None else f"calibrated, {100 * share:g} % attacked"
            rows, refused, rank = [], 0, 0
            for seed in range(splits):
                sample, test = shifted.split(seed)
                calibration: Calibration | None = parent.calibration
                if share is not None:
                    generator = np.random.default_rng(seed)
                    calibration = anew(parent, runtime, shifted, sample, share, limit, generator)
                if calibration is None:
                    refused += 1
                    continue
                rank = calibration.items
                rows.append(caught(runtime, calibration, (test, shifted.attacked_test), rates))
            row = "".join(f"{shown(column):>20}" for column in zip(*rows, strict=True))
            yield f"{f'{shifted.name}: {label}':44}{row}   {rank} rank, {refused} of {splits} refused"


def anew(
    parent: Bundle,
    runtime: Runtime,
    shifted: Shifted,
    sample: NDArray[Any],
    share: float,
    limit: float,
    generator: Generator,
) -> Calibration | None:
    """The calibration from a sample with a share of attacks; None where it was refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = store(Path(name) / "store", parent, sample, shifted.attacked_sample, share, generator)
        shares = {"unnoticed_share": UNNOTICED, "max_rejected_share": limit}
        try:
            return recalibrate(parent, folder, Path(name) / "new", opened=runtime, **shares).bundle.calibration
        except DataError:
            return None


def shifted_traffic(pools: Path, model: str, runtime: Runtime, names: Sequence[str]) -> Iterator[Shifted]:
    """Shift and attack the items of the pools."""
    known = load(pools)
    spec = runtime.spec

    def changed(images: NDArray[Any], name: str) -> NDArray[Any]:
        unit = np.stack([CHANGES[name](one) for one in spec.box.to_unit(images)]).clip(0, 1)
        return spec.box.from_unit(snap(unit, spec.grid))

    for name in names:
        clean = changed(np.concatenate([known[part].images for part in ("calibrate", "test")]), name)
        victims = {"sample": clean[:100], "test": clean[-400:]}
        fooling = {}
        for part, images in victims.items():
            made = spec.box.from_unit(attacked(model, images, spec.shape))
            answers = [runtime.read(one).prediction for one in (images, made)]
            fooling[part] = made[answers[0] != answers[1]]
        yield Shifted(name, clean[100:], fooling["sample"], fooling["test"])


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny bundle: no figures to quote."""
    from tests.serve import tiny_bundle

    with tempfile.TemporaryDirectory() as name:
        parent = tiny_bundle.make(Path(name) / "bundle")
        runtime = remembering(Runtime.open(parent, threads=1))
        noise = np.random.default_rng(0).uniform(-0.15, 0.15, (600, *tiny_bundle.SHAPE))
        striped = (tiny_bundle.striped(600) + noise).clip(0, 1).astype(np.float32)
        clean = (tiny_bundle.clean(2800, seed=1) + np.float32(0.02)).clip(0, 1)
        yield from lines(
            parent, runtime, iter([Shifted("brighter", clean, striped[:100], striped[100:])]), limit=0.2, splits=2
        )


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        print("\n".join(quick()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pools", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--shifts", default=SHIFTS, help="names of `tests.bench.traffic`, separated by commas")
    parser.add_argument("--max-rejected", type=float, default=0.1)
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parent = Bundle.open(given.bundle)
    runtime = remembering(Runtime.open(parent, threads=1))
    traffic = shifted_traffic(given.pools, given.model, runtime, given.shifts.split(","))
    for line in lines(parent, runtime, traffic, limit=given.max_rejected, splits=given.splits):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
