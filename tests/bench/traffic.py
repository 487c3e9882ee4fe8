"""For maintainers: readings of clean, changed and attacked items by a bundle, from which other benchmarks mix traffic.

    python -m tests.bench.traffic BUNDLE --model MODEL.onnx --data FIT.npz --test TEST.npz --out POOLS

Clean are the items that the bundle was calibrated on (those of FIT whose risk it ranks) and those of TEST. TEST is
changed as cameras and files do; attacked by PGD of 2 to 8/255 in 10 steps, of which only items count whose answer
verifiably changed, on the data's grid. POOLS is a folder with one .npz a pool: wire inputs and complete readings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import read_examples, to_wire
from guard.bundle import Bundle
from guard.cascade import Readings
from guard.fusion import Floats
from guard.offline.attacks.methods.pgd import pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.data.grid import Images, snap
from guard.offline.data.harmless_noise import gaussian
from guard.offline.data.picture_shifts import blurred, brightened, compressed
from guard.offline.model.open_model import Source, open_model
from guard.runtime import Runtime

BATCH = 64
NOISE = 8 / 255
CHANGES: Mapping[str, Callable[[Images], Images]] = {
    "blur 0.5 px": blurred(0.5),
    "blur 1 px": blurred(1.0),
    "brightness +5 %": brightened(0.05),
    "brightness +15 %": brightened(0.15),
    "JPEG 75": compressed(75),
    "JPEG 50": compressed(50),
    "another camera's noise, 8/255": lambda one: gaussian(one, NOISE, np.random.default_rng(int(one.sum() * 1e6))),
}
ATTACKED = "PGD 2 to 8/255"


@dataclass(frozen=True, eq=False)
class Pool:
    """Items with the readings that serving would give them."""

    images: NDArray[Any]  # [item, ...] as on the wire
    logits: NDArray[np.float32]
    scores: Floats
    risk: Floats
    p_value: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.risk)

    def take(self, index: NDArray[Any]) -> Pool:
        return Pool(*(getattr(self, one.name)[index] for one in fields(self)))

    @staticmethod
    def joined(parts: list[Pool]) -> Pool:
        return Pool(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Pool)))

    @property
    def readings(self) -> Readings:
        zero = np.zeros(len(self), dtype=np.int64)
        return Readings(self.logits, self.scores, self.risk, self.p_value, zero, self.scores)


def read(runtime: Runtime, wire: NDArray[Any], labels: NDArray[np.int64]) -> Pool:
    """Read wire inputs, all programs run."""
    parts = []
    for start in range(0, len(wire), BATCH):
        found = runtime.read(wire[start : start + BATCH], complete=True)
        part = labels[start : start + BATCH]
        parts.append(Pool(wire[start : start + BATCH], found.logits, found.scores, found.risk, found.p_value, part))
    return Pool.joined(parts)


def save(folder: Path, name: str, pool: Pool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(c if c.isalnum() else "_" for c in name)
    np.savez(folder / f"{safe}.npz", **{one.name: getattr(pool, one.name) for one in fields(pool)}, name=name)
    print(f"{name}: {len(pool)} items", flush=True)


def load(folder: Path) -> dict[str, Pool]:
    """Read the pools of a folder, by their names."""
    found = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            found[str(arrays["name"])] = Pool(*(arrays[one.name] for one in fields(Pool)))
    return found


def attacked(model: str, wire: NDArray[Any], shape: tuple[int, ...]) -> Images:
    """The items, attacked to change the model's answer; whether it did is for the caller to verify."""
    classifier = open_model(Source(model, shape, grid=255))
    victim = TorchModel(classifier.graph)
    generator = torch.Generator().manual_seed(0)
    found = []
    for start in range(0, len(wire), BATCH):
        inputs = torch.from_numpy(wire[start : start + BATCH])
        with torch.no_grad():
            answers = victim(inputs).argmax(dim=1)
        budget = (torch.randint(2, 9, (len(inputs),), generator=generator) / 255).to(torch.float32)
        found.append(pgd(victim, inputs, answers, budget=budget, steps=10, generator=generator).numpy())
    return snap(np.concatenate(found), 255)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runtime = Runtime.open(Bundle.open(given.bundle), threads=1)
    spec = runtime.spec
    test = read_examples(given.test)
    wire = to_wire(test.images[:], spec)
    clean = read(runtime, wire, test.labels)
    save(given.out, "test", clean)
    fooled = read(runtime, spec.box.from_unit(attacked(given.model, wire, spec.shape)), test.labels)
    save(given.out, ATTACKED, fooled.take(fooled.logits.argmax(axis=1) != clean.logits.argmax(axis=1)))
    for name, change in CHANGES.items():
        changed = snap(np.stack([change(one) for one in spec.box.to_unit(wire)]).clip(0, 1), spec.grid)
        save(given.out, name, read(runtime, spec.box.from_unit(changed), test.labels))
    fit = read_examples(given.data)
    whole = read(runtime, to_wire(fit.images[:], spec), fit.labels)
    ranks = runtime.calibration.sorted_risks
    near = ranks[np.searchsorted(ranks, whole.risk - 1e-7).clip(max=len(ranks) - 1)]
    save(given.out, "calibrate", whole.take(np.abs(near - whole.risk) < 1e-7))


if __name__ == "__main__":
    main(sys.argv[1:])
