"""Guards for kinds of model that images of float32 do not show: trained, evaluated, served, attacked over the wire.

python -m tests.bench.kinds series            # two networks, one of each order of axes
python -m tests.bench.kinds numbers           # one probability for two classes, half precision, quantised
python -m tests.bench.kinds series --quick    # one network, few items; under a minute

Printed are what `guard evaluate` prints (the promise, detection of each attack, the attacker who knows the guard), what
is rejected of clean and of freshly attacked items that a client sends through the sidecar, time and memory. It fails
where the sidecar decides otherwise than the bundle does in this process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.demo import MODEL, client, servers
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.data.grid import grid_for, snap
from guard.offline.evaluate import Wish, evaluate_bundle
from guard.offline.findings.evaluation import Evaluation
from guard.offline.job.job import Job
from guard.offline.job.recipe import load_recipe
from guard.offline.report.terminal import lines_of
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.bench import image_models, series_models

RATES = 0.02, 0.1  # of clean items rejected, and flagged
Labelled: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Size:
    """How much is done."""

    network_items: int
    epochs: int
    items: int
    unseen_items: int
    sent_items: int
    craft_items: int
    attack_items: int
    adaptive: tuple[int, int]  # items and steps
    models: int | None = None  # of the kind, the first so many; None: all
    parts: int | None = None  # of the preset's detectors and of its attacks, likewise, with none left out
    is_evaluated: bool = False  # on items that the training never saw


FULL = Size(3000, 12, 3000, 1500, 300, 600, 220, (40, 60), is_evaluated=True)
QUICK = Size(1200, 4, 1000, 200, 40, 60, 30, (4, 4), models=1, parts=1)


@dataclass(frozen=True)
class Subject:
    """A model with data without end, and what its guard is trained with."""

    name: str
    write: Callable[[Path, Size], None]  # the model file
    draw: Callable[[int, int], Labelled]  # items, seed -> unit space, channels first; labels
    preset: str
    budget: float  # of the fresh attacks, in unit space
    box: tuple[float, float] = (0.0, 1.0)  # of the wire
    layout: str = ""  # of series: the order of axes in the file of data
    output: str = "logits"
    leaves_out: bool = False  # evaluated also with guards fitted without a family


def series_subject(name: str) -> Subject:
    layout, _ = series_models.NETWORKS[name]
    low, high = series_models.LOW, series_models.HIGH

    def write(file: Path, size: Size) -> None:
        series_models.write_model(series_models.trained(name, size.network_items, size.epochs), name, file)

    def draw(items: int, seed: int) -> Labelled:
        series, labels = series_models.waves(items, seed)
        return (series - low) / np.float32(high - low), labels

    leaves_out = name == "convolutions"
    return Subject(f"{name}, {layout}", write, draw, "series", 0.06, (low, high), layout, leaves_out=leaves_out)


def image_subject(form: str) -> Subject:
    def write(file: Path, size: Size) -> None:
        image_models.write_model(form, file, size.network_items, size.epochs)

    def draw(items: int, seed: int) -> Labelled:
        return image_models.shapes(items, seed, image_models.CLASSES[form])

    output = "probabilities" if form == "one output" else "logits"
    return Subject(form, write, draw, "standard", 8 / 255, output=output, leaves_out=form == "one output")


KINDS: Mapping[str, Sequence[Subject]] = {
    "series": [series_subject(name) for name in series_models.NETWORKS],
    "numbers": [image_subject(form) for form in image_models.CLASSES],
}


def guard_one(subject: Subject, folder: Path, size: Size, console: Console) -> list[str]:
    """Train, evaluate and serve a guard for one model; return what is wrong."""
    folder.mkdir()
    low, high = subject.box
    recipe = load_recipe(subject.preset)
    if size.parts is not None:
        recipe = replace(recipe, attacks=recipe.attacks[: size.parts], left_out=()).having(
            recipe.detectors[: size.parts]
        )
    subject.write(folder / "model.onnx", size)
    for file, items, seed in (("data", size.items, 1), ("unseen", size.unseen_items, 2)):
        unit, labels = subject.draw(items, seed)
        wire = low + unit * np.float32(high - low)
        np.savez(folder / f"{file}.npz", images=series_models.in_order(wire, subject.layout), labels=labels)
    job = Job(
        model=str(folder / "model.onnx"),
        data=folder / "data.npz",
        out=folder / "bundle",
        recipe=recipe,
        low=(low,),
        high=(high,),
        output=subject.output,
        reject_rate=RATES[0],
        flag_rate=RATES[1],
        serves=MODEL,
        craft_items=size.craft_items,
        attack_items=size.attack_items,
        adaptive_items=size.adaptive[0],
        adaptive_steps=size.adaptive[1],
    )
    console.print(f"\n{subject.name}")
    began = time.monotonic()
    bundle = train(job, Stages(console))
    console.print(f"trained in {(time.monotonic() - began) / 60:.1f} min")
    if size.is_evaluated:
        began, wish = time.monotonic(), Wish(minutes=6.0, quick=not subject.leaves_out)
        found = evaluate_bundle(bundle, folder / "unseen.npz", folder / "report", wish, Stages(console))
        show(found, console)
        console.print(f"evaluated in {(time.monotonic() - began) / 60:.1f} min")
    return serve(bundle, subject, folder, size, console)


def show(found: Evaluation, console: Console) -> None:
    for line in lines_of(found):
        console.print(line, highlight=False, markup=False)


def serve(bundle: Bundle, subject: Subject, folder: Path, size: Size, console: Console) -> list[str]:
    """Send clean and freshly attacked items through the sidecar; return where it differs from the bundle here."""
    runtime = Runtime.open(bundle)
    clean, attacked = fresh(bundle, subject, size.sent_items)
    faults = []
    with servers(folder) as house, client(house.guarded) as infer:
        for what, wire in (("clean", clean), (f"PGD-20 {subject.budget:.3g}, fresh", attacked)):
            if not len(wire):
                continue
            passed = np.asarray([infer(item[None]) for item in wire])
            here = runtime.read(wire).p_value > bundle.manifest.reject_rate
            console.print(f"through the sidecar, {what}: {(~passed).sum()} of {len(wire)} rejected", highlight=False)
            if (passed != here).any():
                faults.append(f"{what}: {(passed != here).sum()} verdicts of the sidecar are not the bundle's")
    return faults


def fresh(bundle: Bundle, subject: Subject, items: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Clean items of the model's wire that nobody has seen, and attacked ones that fool the model."""
    classifier = Work.beside(bundle).subject(bundle).classifier
    spec = bundle.manifest.model.input
    drawn, labels = subject.draw(items, 3)
    unit = torch.from_numpy(drawn)
    attack = Pgd(budget=subject.budget, steps=20)
    found = attack(TorchModel(classifier.graph), unit, torch.from_numpy(labels), torch.Generator().manual_seed(5))
    attacked = torch.from_numpy(snap(found.numpy(), grid_for(spec)))
    with torch.no_grad():
        right = classifier(unit).argmax(dim=1).numpy() == labels
        fooled = right & (classifier(attacked).argmax(dim=1).numpy() != labels)
    return spec.box.from_unit(unit.numpy()), spec.box.from_unit(attacked.numpy()[fooled])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--only", help="models of the kind whose name begins so; all unless given", default="")
    parser.add_argument("--quick", action="store_true", help="one model, few items")
    parser.add_argument("--folder", type=Path, help="where models, data, bundles and reports are put; else a fresh one")
    options = parser.parse_args()
    size, console, began = QUICK if options.quick else FULL, Console(width=100), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(exist_ok=True)
        subjects = [subject for subject in KINDS[options.kind] if subject.name.startswith(options.only)][: size.models]
        if not subjects:
            parser.error(f"no {options.only!r} among {', '.join(subject.name for subject in KINDS[options.kind])}")
        faults = [
            fault
            for place, subject in enumerate(subjects)
            for fault in guard_one(subject, folder / f"{options.kind}-{place}", size, console)
        ]
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
