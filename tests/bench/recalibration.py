"""For maintainers: false alarms and detection before and after `guard calibrate`, on traffic that has shifted.

    python -m tests.bench.recalibration BUNDLE POOLS --model MODEL.onnx [--shifts "blur 1 px,JPEG 50"]
    python -m tests.bench.recalibration --quick

POOLS is what `tests.bench.traffic` wrote. The sample of traffic are the items that the bundle was calibrated on,
shifted, with a share of attacked ones among them; false alarms are counted on the shifted test items, detection on
attacked ones of these that are not in the sample. Attacks are PGD of 2 to 8/255 on shifted items, verified. The stated
interval of false alarms runs from the promise to the promise and the share left out; what is found has the sampling
error of a thousand ranking items and a thousand test items on top.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.errors import GuardError
from guard.offline.data.grid import snap
from guard.offline.findings.intervals import Rate
from guard.recalibrate import recalibrate
from guard.runtime import Runtime
from guard.session import Session
from guard.traffic_sample import SampledItems, SampleSpec, SampleWriter
from tests.bench.traffic import CHANGES, attacked, load

SHARES = (0.0, 0.005, 0.01, 0.02)  # of the sample that is attacked
UNNOTICED = 0.01
SHIFTS = "blur 1 px,JPEG 50,brightness +15 %"
BATCH = 64


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
    """Shifted traffic: clean items for the sample and for the test, and attacked ones for both."""

    name: str
    sample: NDArray[Any]
    test: NDArray[Any]
    attacked_sample: NDArray[Any]
    attacked_test: NDArray[Any]


def store(folder: Path, parent: Bundle, shifted: Shifted, share: float, seed: int) -> Path:
    """Write the sample with a share of attacked items in it, in a random order."""
    generator = np.random.default_rng(seed)
    count = round(share * len(shifted.sample) / (1 - share))
    images = np.concatenate([shifted.sample, shifted.attacked_sample[:count]])
    images = images[generator.permutation(len(images))]
    spec = SampleSpec.of(parent.manifest.model.input, share=1.0, bundle=parent.digest, model="bench")
    writer = SampleWriter(folder, spec, generator)
    nothing = np.zeros(len(images))
    writer.add(SampledItems(images, nothing.astype(bool), nothing, nothing))
    writer.flush()
    return folder


def shown(p_values: NDArray[np.float64], rate: float) -> str:
    found = Rate.of(p_values <= rate)
    return f"{100 * found.value:5.1f} [{100 * found.low:4.1f},{100 * found.high:5.1f}]"


def lines(parent: Bundle, runtime: Runtime, traffic: Iterator[Shifted], limit: float) -> Iterator[str]:
    """Yield the table: a row for the parent on each shift, and one for each share of attacks in the sample."""
    manifest = parent.manifest
    rates = (manifest.reject_rate, manifest.flag_rate)
    yield f"{'false alarms and attacks caught, %':44}" + "".join(
        f"{f'clean at {100 * rate:g} %':>20}{f'attacked at {100 * rate:g} %':>20}" for rate in rates
    )
    for shifted in traffic:
        sets = (shifted.test, shifted.attacked_test)
        before = [runtime.read(images).p_value for images in sets]
        row = "".join(f"{shown(found, rate):>20}" for rate in rates for found in before)
        yield f"{f'{shifted.name}: as it was':44}{row}"
        for share in SHARES:
            label = f"    calibrated, {100 * share:g} % attacked"
            with tempfile.TemporaryDirectory() as name:
                folder = store(Path(name) / "store", parent, shifted, share, seed=int(1000 * share))
                try:
                    told = recalibrate(
                        parent,
                        folder,
                        Path(name) / "new",
                        unnoticed_share=UNNOTICED,
                        max_rejected_share=limit,
                        opened=runtime,
                    )
                except GuardError as error:
                    yield f"{label:44}  refused: {error}"
                    continue
                after = runtime.cascade.with_calibration(told.bundle.calibration)
                found = [after.read(images).p_value for images in sets]
            row = "".join(f"{shown(one, rate):>20}" for rate in rates for one in found)
            stated = ", ".join(f"{100 * one.promised:g} to {100 * one.at_most:g}" for one in told.moved.values())
            yield f"{label:44}{row}   stated {stated}; {told.items} rank"


def shifted_traffic(pools: Path, model: str, runtime: Runtime, names: Sequence[str]) -> Iterator[Shifted]:
    """Shift and attack the items of the pools."""
    known = load(pools)
    spec = runtime.spec

    def changed(images: NDArray[Any], name: str) -> NDArray[Any]:
        unit = np.stack([CHANGES[name](one) for one in spec.box.to_unit(images)]).clip(0, 1)
        return spec.box.from_unit(snap(unit, spec.grid))

    for name in names:
        sample, test = (changed(known[part].images, name) for part in ("calibrate", "test"))
        victims = {"sample": sample[:100], "test": test[:400]}
        fooling = {}
        for part, images in victims.items():
            made = spec.box.from_unit(attacked(model, images, spec.shape))
            answers = [runtime.read(one).prediction for one in (images, made)]
            fooling[part] = made[answers[0] != answers[1]]
        yield Shifted(name, sample[100:], test, fooling["sample"], fooling["test"])


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny bundle: no figures to quote."""
    from tests.serve import tiny_bundle

    with tempfile.TemporaryDirectory() as name:
        parent = tiny_bundle.make(Path(name) / "bundle")
        runtime = remembering(Runtime.open(parent, threads=1))
        noise = np.random.default_rng(0).uniform(-0.15, 0.15, (600, *tiny_bundle.SHAPE))
        striped = (tiny_bundle.striped(600) + noise).clip(0, 1).astype(np.float32)
        sets = [(tiny_bundle.clean(items, seed=items) + np.float32(0.02)).clip(0, 1) for items in (1800, 1000)]
        shifted = Shifted("brighter", sets[0], sets[1], striped[:100], striped[100:])
        yield from lines(parent, runtime, iter([shifted]), 0.2)


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
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parent = Bundle.open(given.bundle)
    runtime = remembering(Runtime.open(parent, threads=1))
    for line in lines(
        parent, runtime, shifted_traffic(given.pools, given.model, runtime, given.shifts.split(",")), given.max_rejected
    ):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
