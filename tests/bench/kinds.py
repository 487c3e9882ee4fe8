"""Guards for kinds of input other than images: trained, evaluated, served, attacked over the wire.

python -m tests.bench.kinds series            # two networks, one of each order of axes; about 15 minutes on two cores
python -m tests.bench.kinds series --quick    # one network, few items; under a minute

Printed are what `guard evaluate` prints (the promise, detection of each attack, the attacker who knows the guard), what
is rejected of clean and of freshly attacked series that a client sends through the sidecar, time and memory. It fails
where the sidecar decides otherwise than the bundle does in this process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.demo import MODEL, client, servers
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.findings.evaluation import Evaluation
from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe
from guard.offline.report.terminal import lines_of
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.bench.series_models import HIGH, LOW, NETWORKS, in_order, trained, waves, write_model

RATES = 0.02, 0.1  # of clean items rejected, and flagged
BUDGET = 0.06  # of the fresh attacks, in unit space


@dataclass(frozen=True)
class Size:
    """How much is done."""

    networks: Sequence[str]
    network_items: int
    epochs: int
    items: int
    unseen_items: int
    sent_items: int
    craft_items: int
    attack_items: int
    adaptive: tuple[int, int]  # items and steps
    evaluates: Sequence[str] = ()  # networks that are evaluated on unseen series
    leaves_out: Sequence[str] = ()  # and those of them with guards fitted without a family, too


FULL = Size(tuple(NETWORKS), 3000, 12, 3000, 1500, 300, 600, 220, (40, 60), tuple(NETWORKS), ("convolutions",))
QUICK = Size(("convolutions",), 1200, 4, 1000, 200, 40, 60, 30, (6, 4))


def guard_series(name: str, folder: Path, size: Size, console: Console) -> list[str]:
    """Train, evaluate and serve a guard for one network; return what is wrong."""
    layout, _ = NETWORKS[name]
    folder.mkdir()
    model = trained(name, size.network_items, size.epochs)
    write_model(model, name, folder / "model.onnx")
    for file, items, seed in (("data", size.items, 1), ("unseen", size.unseen_items, 2)):
        series, labels = waves(items, seed)
        np.savez(folder / f"{file}.npz", images=in_order(series, layout), labels=labels)
    job = Job(
        model=str(folder / "model.onnx"),
        data=folder / "data.npz",
        out=folder / "bundle",
        recipe=load_recipe("series"),
        low=(LOW,),
        high=(HIGH,),
        reject_rate=RATES[0],
        flag_rate=RATES[1],
        serves=MODEL,
        craft_items=size.craft_items,
        attack_items=size.attack_items,
        adaptive_items=size.adaptive[0],
        adaptive_steps=size.adaptive[1],
    )
    console.print(f"\n{name}, {layout}")
    began = time.monotonic()
    bundle = train(job, Stages(console))
    console.print(f"trained in {(time.monotonic() - began) / 60:.1f} min")
    if name in size.evaluates:
        began, wish = time.monotonic(), Wish(minutes=6.0, quick=name not in size.leaves_out)
        found = evaluate_bundle(bundle, folder / "unseen.npz", folder / "report", wish, Stages(console))
        show(found, console)
        console.print(f"evaluated in {(time.monotonic() - began) / 60:.1f} min")
    return serve(bundle, folder, size, console)


def show(found: Evaluation, console: Console) -> None:
    for line in lines_of(found):
        console.print(line, highlight=False, markup=False)


def serve(bundle: Bundle, folder: Path, size: Size, console: Console) -> list[str]:
    """Send clean and freshly attacked series through the sidecar; return where it differs from the bundle here."""
    runtime = Runtime.open(bundle)
    clean, attacked = fresh(bundle, size.sent_items)
    faults = []
    with servers(folder) as house, client(house.guarded) as infer:
        for what, wire in (("clean", clean), (f"PGD-20 {BUDGET:g}, fresh", attacked)):
            if not len(wire):
                continue
            passed = np.asarray([infer(item[None]) for item in wire])
            here = runtime.read(wire).p_value > bundle.manifest.reject_rate
            console.print(f"through the sidecar, {what}: {(~passed).sum()} of {len(wire)} rejected", highlight=False)
            if (passed != here).any():
                faults.append(f"{what}: {(passed != here).sum()} verdicts of the sidecar are not the bundle's")
    return faults


def fresh(bundle: Bundle, items: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Clean series of the model's wire that nobody has seen, and attacked ones that fool the model."""
    classifier = Work.beside(bundle).subject(bundle).classifier
    box = bundle.manifest.model.input.box
    series, labels = waves(items, seed=3)
    unit = torch.from_numpy((series - LOW) / np.float32(HIGH - LOW))
    attack = Pgd(budget=BUDGET, steps=20)
    attacked = attack(TorchModel(classifier.graph), unit, torch.from_numpy(labels), torch.Generator().manual_seed(5))
    with torch.no_grad():
        right = classifier(unit).argmax(dim=1).numpy() == labels
        fooled = right & (classifier(attacked).argmax(dim=1).numpy() != labels)
    return box.from_unit(unit.numpy()), box.from_unit(attacked.numpy()[fooled])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["series"])
    parser.add_argument("--quick", action="store_true", help="one network, few items")
    parser.add_argument("--folder", type=Path, help="where models, data, bundles and reports are put; else a fresh one")
    options = parser.parse_args()
    size, console, began = QUICK if options.quick else FULL, Console(width=100), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(exist_ok=True)
        faults = [fault for name in size.networks for fault in guard_series(name, folder / name, size, console)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(
        f"\ncommit {commit.stdout.strip()}, {os.cpu_count()} cores, {(time.monotonic() - began) / 60:.1f} min, "
        f"peak memory {peak:.2f} GiB",
        highlight=False,
    )
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
