"""For maintainers: what a second network catches alone, and a guard with it and without, seen and left out.

    python -m tests.bench.second jpeg cifar10-train-jpeg.npz training.npz
    python -m tests.bench.second measure --model M.onnx --data FIT.npz (--second N.onnx | --second-data TRAIN.npz) \
        [--detectors screen|standard] [--items N] [--attacks NAMES] [--work DIR] [--minutes M] [--epochs N,R]
    python -m tests.bench.second --quick

`jpeg` decodes pictures kept as JPEG bytes with offsets to an array. `measure` crafts the attacks of preset `standard`,
and `spatial` and `frame` beside them, on the splits of FIT; what is crafted or trained lies in DIR and is taken up
again. A guard is one fusion over all its detectors, in torch, calibrated on the clean items of its own split, without
the early reject of a cascade; "left out" is fitted without the attack's family, heads and fusion. Each chooses by the
families that it has which share of the rate is kept for the second opinion, as a training does. The columns are AUROC
and what is caught at 1 % and 5 % promised. Noise is uniform or Gaussian, of items that nothing was fitted on.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from guard.calibration import auroc
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.frame import Frame
from guard.offline.attacks.methods.spatial import Spatial
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter
from guard.offline.crafting.stage import craft_run, learning_items
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import snap
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.detectors.table import INDEPENDENT
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.findings.attack_names import labels_of
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.job.second_settings import ASKING
from guard.offline.model.classifier import Classifier
from guard.offline.second.asked import find_asked
from guard.offline.training.build import Prepared
from guard.offline.training.choose_share import choose_share
from guard.offline.training.fit_fusion import fit_fusion
from guard.offline.training.fit_heads import FittingItems, fit_heads
from guard.offline.training.left_out_scores import left_out_scores
from guard.offline.training.pooled_items import pool

SCREEN = ("mahalanobis", "kernel_density", "lid")
RATES = (0.01, 0.05)
NOISE_STEPS = (2, 4, 8)  # of 255

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Setting:
    """What every guard of this run is fitted, calibrated and tried on."""

    job: Job
    classifier: Classifier
    data: Dataset
    learned: tuple[CraftedSet, ...]
    tested: dict[str, CraftedSet]
    noise: dict[str, NDArray[np.float32]]
    remembered: EvidenceCache
    seed: int
    heads: dict[str | None, dict[str, Head]] = field(default_factory=dict)  # by the family that they do without


class Fitted:
    """A guard in torch: heads and fusion, calibrated."""

    def __init__(self, setting: Setting, detectors: Sequence[Detector], without: str | None = None) -> None:
        self.setting, self.detectors = setting, detectors
        learned = [one for one in setting.learned if one.family != without]
        spec = setting.classifier.spec.input
        attacked, noisy = pool(learned, setting.data, Split.HEADS, spec, setting.seed)
        items = FittingItems(setting.data.part(Split.HEADS), noisy, attacked)
        known = setting.heads.setdefault(without, {})  # a head does not depend on the others
        new = [detector for detector in detectors if detector.name not in known]
        known |= fit_heads(new, items, setting.remembered, seed=setting.seed, report=lambda _: None) if new else {}
        self.heads: list[Head] = [known[detector.name] for detector in detectors]
        bad, noisy = pool(learned, setting.data, Split.COMBINER, spec, setting.seed)
        clean = self.scores(setting.data.part(Split.COMBINER).images)
        own = [detector.name in INDEPENDENT for detector in detectors]
        prepared = Prepared(setting.classifier, setting.data, tuple(learned))
        left_out = left_out_scores(setting.job, prepared, {"guard": detectors}, setting.remembered, lambda _: None)
        share = choose_share(left_out, own).rate_share
        self.fusion = fit_fusion(clean, self.scores(noisy), Attacked(self.scores(bad.items), bad.by), own, share)
        self.ranked = np.sort(self.risk(setting.data.part(Split.CALIBRATE).images))

    def scores(self, images: NDArray[np.float32]) -> Floats:
        needs = [need for head in self.heads for need in head.detector.needs]
        evidence = self.setting.remembered(needs, images)
        with torch.no_grad():
            return torch.stack([head(evidence) for head in self.heads], dim=1).double().numpy()

    def risk(self, images: NDArray[np.float32]) -> Floats:
        return np.asarray(self.fusion.risk(self.scores(images)))

    def caught(self, risk: Floats) -> list[float]:
        above = len(self.ranked) - np.searchsorted(self.ranked, risk, side="left")
        p_value = (1 + above) / (len(self.ranked) + 1)
        return [float((p_value <= rate).mean()) for rate in RATES]

    def row(self, images: NDArray[np.float32], clean: Floats) -> str:
        risk = self.risk(images)
        low, high = self.caught(risk)
        return f"{auroc(clean, risk):.3f} {low:4.0%} {high:4.0%}"


def crafted_of(
    job: Job, classifier: Classifier, data: Dataset, attacks: Sequence[Attack], items: int
) -> list[CraftedSet]:
    crafter = Crafter.open(craft_run(job, classifier, TorchModel(classifier.graph)), data)
    return list(crafter.attacked(attacks, tried=[min(items, crafter.items)] * len(attacks)))


def noise_of(images: NDArray[np.float32], grid: int | None, seed: int) -> dict[str, NDArray[np.float32]]:
    draw, found = np.random.default_rng(seed), {}
    for steps in NOISE_STEPS:
        for kind, noise in (
            ("uniform", draw.uniform(-1, 1, images.shape)),
            ("Gaussian", draw.normal(0, 0.5, images.shape)),
        ):
            found[f"{kind} noise {steps}/255"] = snap(
                (images + steps / 255 * noise).clip(0, 1).astype(np.float32), grid
            )
    return found


def measure(job: Job, detectors: str, items: int, names: Sequence[str] = ()) -> None:
    """Print the table."""
    began = time.monotonic()
    classifier, data = open_job(job)
    say = lambda *words: print(f"{time.monotonic() - began:7.0f} s", *words, flush=True)  # noqa: E731
    job.work.begin()
    asked = find_asked(job, classifier, data, say).trained(classifier, data, say, lambda *_: None)
    own = asked.recipe.programs([tap.name for tap in classifier.taps])
    every = [detector for program in own.values() for detector in program]
    chosen = [one for one in every if detectors == "standard" or one.name in (*SCREEN, *ASKING)]
    recipe = replace(job.recipe, attacks=tuple(one for one in job.recipe.attacks if not names or one.name in names))
    learned = crafted_of(job, classifier, learning_items(data), recipe.attacks, items)
    say("crafted to learn from:", ", ".join(f"{one.name} {len(one)}" for one in learned))
    more = [Spatial(samples=16), Frame(budget=0.12)] if data.images.ndim == 4 and min(data.item_shape[1:]) >= 16 else []
    attacks = [*recipe.attacks, *recipe.left_out, *more]
    test = data.part(Split.TEST)
    tested = dict(
        zip(
            labels_of(attacks, classifier.spec.input.grid),
            crafted_of(job, classifier, test, attacks, items),
            strict=True,
        )
    )
    say("crafted to be tried:", ", ".join(f"{name} {len(one)}" for name, one in tested.items()))
    noise = noise_of(test.images, classifier.spec.input.grid, job.seed)
    setting = Setting(job, classifier, data, tuple(learned), tested, noise, EvidenceCache(classifier), job.seed)
    table(setting, chosen, say)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"peak memory {peak:.2f} GiB")


def table(setting: Setting, chosen: Sequence[Detector], say: Any) -> None:
    alone = [one for one in chosen if one.name in ASKING]
    without = [one for one in chosen if one.name not in ASKING]
    guards = {"second alone": alone[:1], "without second": without, "with second": chosen}
    seen = {name: Fitted(setting, detectors) for name, detectors in guards.items()}
    say("guards fitted")
    test = setting.data.part(Split.TEST).images
    clean = {name: guard.risk(test) for name, guard in seen.items()}
    print(f"{'':34} {'n':>5}" + "".join(f"  {name:>17}" for name in guards) + "   left out: without     with")
    for name, risk in ((f"clean ({len(test)})", clean), *((n, None) for n in setting.noise)):
        cells = [
            (" " * 6 + "{:4.1%} {:4.1%}".format(*guard.caught(clean[key] if risk else guard.risk(setting.noise[name]))))
            for key, guard in seen.items()
        ]
        print(f"{name:34} {len(test):5}" + "".join(f"  {cell:>17}" for cell in cells), flush=True)
    others: dict[tuple[str, str], Fitted] = {}
    for name, found in setting.tested.items():
        cells = [guard.row(found.attacked, clean[key]) for key, guard in seen.items()]
        if any(one.family == found.family for one in setting.learned):
            for key in ("without second", "with second"):
                pair = (key, found.family)
                others[pair] = others.get(pair) or Fitted(setting, guards[key], found.family)
                cells.append(others[pair].row(found.attacked, others[pair].risk(test)))
        print(f"{name:34} {len(found):5}" + "".join(f"  {cell:>17}" for cell in cells), flush=True)


def jpeg(source: Path, target: Path) -> None:
    """Decode JPEG bytes `jpeg` with `offsets` and `labels` to `images` [item, height, width, channel]."""
    with np.load(source) as kept:
        content, ends, labels = kept["jpeg"], kept["offsets"], kept["labels"]
    images = np.stack([np.asarray(Image.open(io.BytesIO(content[a:b].tobytes()))) for a, b in pairwise(ends)])
    np.savez(target, images=images, labels=labels.astype(np.int64))
    print(f"{len(images):,} images of {images.shape[1:]} in {target}")


def quick() -> None:
    """Run it all on the tests' tiny images: a verifier of two epochs, no figures to quote."""
    from tests.offline import tiny

    raw = {
        **tiny.RECIPE,
        "detector": [{"name": name, "program": "screen"} for name in ("mahalanobis", *ASKING)],
        "second": {"natural_epochs": 1, "robust_epochs": 1, "budget": 0.02, "forwards": 0.5},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = tiny.write_data(folder / "training.npz", 1500, seed=21)
        measure(tiny.job(folder, recipe=parse(raw, "quick"), second_data=training, threads=1), "standard", 100)


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        return quick()
    if arguments[:1] == ["jpeg"]:
        return jpeg(Path(arguments[1]), Path(arguments[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=["measure"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second", action="append", default=[])
    parser.add_argument("--second-data", type=Path)
    parser.add_argument("--detectors", choices=("screen", "standard"), default="screen")
    parser.add_argument("--items", type=int, default=330)
    parser.add_argument("--attacks", default="", help="of the recipe's, by name, separated by commas; all unless given")
    parser.add_argument("--minutes", type=float)
    parser.add_argument(
        "--epochs", default="", help="of a verifier that is trained: natural,robust; the recipe's unless given"
    )
    parser.add_argument("--work", type=Path, default=Path("second-bench"))
    given = parser.parse_args(arguments)
    job = Job(
        given.model, given.data, given.work, load_recipe("standard"), second=tuple(given.second),
        second_data=given.second_data, second_minutes=given.minutes, threads=1,
    )  # fmt: skip
    if given.epochs:
        natural, robust = map(int, given.epochs.split(","))
        second = replace(job.recipe.second, natural_epochs=natural, robust_epochs=robust)
        job = replace(job, recipe=replace(job.recipe, second=second))
    measure(replace(job, adaptive_items=0), given.detectors, given.items, tuple(filter(None, given.attacks.split(","))))
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
