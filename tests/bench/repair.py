"""For maintainers: the model's accuracy on clean and on attacked items, before and after each denoiser of REPAIR.

    python -m tests.bench.repair --model M.onnx --data FIT.npz --test TEST.npz --out DIR [--only NAMES]
    python -m tests.bench.repair --quick

Items and attacks are those of `tests.bench.detectors`, which keeps them in the same DIR; attacked items fool the model,
so that its accuracy on them is 0 before. Each denoiser, with the settings shown, is compiled as a bundle has it (a
network is trained first) and run by ONNX Runtime on wire inputs, as `guard serve` does before it forwards a flagged
item. Here every item goes through it: what a guard does not flag is forwarded as it came. The second line of each tells
the share whose repaired answer is stable, which alone is forwarded, and how many of those are right. Microseconds are
one thread's own, an item in batches of 32, the answers that tell what is stable included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.offline.bench.stopwatch import race, spread
from guard.offline.data.splits import Split
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.denoisers.table import DENOISERS
from guard.offline.findings.intervals import Rate
from guard.offline.job.job import Job
from guard.offline.programs.program import Cleaner
from guard.offline.programs.write_programs import compile_programs
from guard.offline.training.learned_repairs import lessons_of, trained
from guard.runtime import Repaired
from guard.session import Session
from tests.bench.detectors import ATTACKS, Setting, Sizes, files_of, opened, recipe_of

BATCH_ITEMS = 32
# The defaults, and stronger settings of those that have a strength
TRIED: tuple[Mapping[str, Any], ...] = (
    {"name": "bit_depth"},
    {"name": "bit_depth", "bits": 3},
    {"name": "median"},
    {"name": "median", "window": 3},
    {"name": "non_local_means"},
    {"name": "non_local_means", "strength": 6 / 255},
    {"name": "non_local_means", "strength": 12 / 255},
    {"name": "total_variation"},
    {"name": "total_variation", "weight": 0.1},
    {"name": "dct_quantisation"},
    {"name": "dct_quantisation", "quality": 40},
)


def tried(names: Sequence[str]) -> tuple[Denoiser, ...]:
    """Return the denoisers of these names, in every setting that is tried; one that is not listed has its defaults."""
    listed = {entry["name"] for entry in TRIED}
    entries = [*TRIED, *({"name": name} for name in DENOISERS if name not in listed)]
    chosen = [entry for entry in entries if entry["name"] in names]
    return tuple(
        DENOISERS[one["name"]](**{key: value for key, value in one.items() if key != "name"}) for one in chosen
    )


def batches(session: Session, outputs: Sequence[str], images: NDArray[np.float32]) -> list[NDArray[Any]]:
    parts = [images[start : start + BATCH_ITEMS] for start in range(0, len(images), BATCH_ITEMS)]
    return [np.concatenate(found) for found in zip(*(session.run(outputs, part) for part in parts), strict=True)]


def share(found: Rate) -> str:
    return f"{100 * found.value:3.0f} {100 * found.low:2.0f}-{100 * found.high:<3.0f}"


def lines(setting: Setting, asked: Sequence[Denoiser], seconds: float) -> Iterator[str]:
    """Yield the table: accuracy after each denoiser on clean items and on those of each attack."""
    spec, test = setting.prepared.classifier.spec.input, setting.prepared.data.part(Split.TEST)
    sets = {"clean": (test.images[:], test.labels)}
    sets |= {label: (one.attacked, one.labels) for label, one in setting.tested.items() if len(one)}
    wire = {label: spec.box.from_unit(images) for label, (images, _) in sets.items()}
    head = "".join(f"{label.replace('/255', ''):>11}" for label in sets)
    yield f"{'right of (%)':46}{head} {'µs':>6}"
    yield f"{'items':46}" + "".join(f"{len(labels):>11}" for _, labels in sets.values())

    def right(label: str, images: NDArray[np.float32]) -> Rate:
        unit = spec.box.to_unit(images)
        return Rate.of(batches(setting.bare, ("logits",), unit)[0].argmax(axis=1) == sets[label][1])

    yield f"{'as they came':46}" + "".join(f"{share(right(label, images)):>11}" for label, images in wire.items())
    classifier, data = setting.prepared.classifier, setting.prepared.data
    usable = [one for one in asked if classifier.kind.refusal(one) is None]
    for denoiser in trained(usable, lambda: lessons_of(classifier, data, setting.prepared.crafted, {}, 0)):
        files = compile_programs({}, {denoiser.name: Cleaner(denoiser, classifier)}, wire["clean"])
        session = Session(files.in_memory(files.repairs[0].file), device="cpu", threads=1)
        found = {label: batches(session, Cleaner.outputs, images) for label, images in wire.items()}
        some = wire["clean"][:BATCH_ITEMS]
        laps = race({"it": lambda: session.run(Cleaner.outputs, some)}, seconds=seconds, clock=time.thread_time_ns)  # noqa: B023
        cost = spread(laps.of("it")).median / len(some)
        after = "".join(f"{share(right(label, cleaned)):>11}" for label, (cleaned, _) in found.items())
        yield f"{repr(denoiser)[:45]:46}{after} {cost:6.0f}"
        yield f"{'    stable; right of those':46}" + "".join(
            f"{stable_and_right(classes, sets[label][1]):>11}" for label, (_, classes) in found.items()
        )


def stable_and_right(classes: NDArray[np.int64], labels: NDArray[np.int64]) -> str:
    """The shares of items whose repaired answers [item, opinion] are alike, and of these that are right."""
    stable = Repaired(classes, classes).stable
    if not stable.any():
        return "0"
    return f"{100 * stable.mean():.0f}; {100 * (classes[stable, 0] == labels[stable]).mean():.0f}"


def quick() -> Iterator[str]:
    """Run it all on the tests' tiny images: no figures to quote."""
    from tests.offline import tiny

    with tempfile.TemporaryDirectory() as name:
        job = tiny.job(Path(name), recipe=recipe_of([{"name": "fgsm", "budget": 0.25}]), threads=1)
        setting = opened("tiny", job, Sizes(learned=20, tried=60), Path(name))
        yield from lines(setting, (Median(), MovingAverage()), 0.0)


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        print("\n".join(quick()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(DENOISERS), help="denoisers by name, separated by commas")
    given = parser.parse_args(arguments)
    sizes = Sizes()
    data, test = files_of(given.data, given.test, given.out, sizes)
    job = Job(given.model, data, given.out / "guard", recipe_of(ATTACKS), test=test, threads=1)
    setting = opened(Path(given.data).stem, job, sizes, given.out)
    for line in lines(setting, tried(given.only.split(",")), sizes.timed_s):
        print(line, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
