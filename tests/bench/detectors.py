"""For maintainers: what each detector catches and costs alone, beside what was published for its method.

    python -m tests.bench.detectors --model M.onnx --data FIT.npz --test TEST.npz --out DIR [--only NAMES] [--items N]
    python -m tests.bench.detectors --table DIR/rows.jsonl
    python -m tests.bench.detectors --quick

Each detector is a guard of its own: fitted, fused, compiled and calibrated as `guard train` does, then read through
ONNX Runtime on the first images of TEST and on attacks on them. "Left out" is fitted without the attack's family, in
torch, with thresholds of its own. All learn from the same attacked items, kept in DIR; a row a detector is added to
DIR/rows.jsonl, and a run that was stopped goes on after the last one. Where papers state an AUROC, the detector's own
score is measured in their protocol as well: fitted on one attack at a time, noise of its size, clean items that the
model has right. AUROC is of the guard's risk, with DeLong's
interval; left-out items are pooled by their ranks among the clean test items. Thresholds are calibrated, so that 1 %
and 5 % are promised rates. Microseconds are one thread's own, an item beyond the bare model; memory is a process' peak
in batches of 32 beyond the bare model's; fitting is processor time of the heads with their evidence.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.calibration import auroc, rank_p
from guard.fusion import Floats
from guard.offline.bench.stopwatch import race, spread
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.stage import learning_items
from guard.offline.data.attacked import Attacked
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Head
from guard.offline.detectors.table import DETECTORS, INDEPENDENT
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.forwards import floor_of
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.onnx_gather import INPUT, Outputs
from guard.offline.findings.attack_names import labels_of
from guard.offline.findings.intervals import Area, Rate, placements
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import Recipe, built_detector, parse
from guard.offline.job.second_settings import ASKING
from guard.offline.model.classifier import Classifier
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs.program import Program
from guard.offline.programs.read import read
from guard.offline.training.build import Graphs, Prepared, compile_heads, fit, parities
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.candidates import columns
from guard.offline.training.fit_fusion import fit_fusion
from guard.offline.training.fit_heads import FittingItems, fit_heads, settled
from guard.offline.training.pooled_items import pool
from guard.session import Session
from tests.bench.detector_rows import PUBLISHED, ByAttack, Figures, Interval, Row, read_rows, tables
from tests.bench.resident import peak_of
from tests.bench.second import crafted_of

RATES = (0.01, 0.05)
COMPARED = {one.detector for one in PUBLISHED if one.rate is None}
BATCHES = (1, 32)
ATTACKS: tuple[Mapping[str, Any], ...] = (
    {"name": "pgd", "budget": 4 / 255, "steps": 10},
    {"name": "pgd", "budget": 8 / 255, "steps": 20},
    {"name": "pgd", "budget": 0.5, "norm": "l2", "steps": 20},
    {"name": "fgsm", "budget": 8 / 255},
    {"name": "deepfool"},
    {"name": "cw", "steps": 60, "searches": 4},
)


@dataclass(frozen=True)
class Sizes:
    """How much a run takes: clean images to fit and to test on, items that each attack is tried on, seconds to time."""

    fit: int = 1600
    test: int = 600
    learned: int = 240
    tried: int = 150
    timed_s: float = 2.0  # a batch size


@dataclass(frozen=True, eq=False)
class Setting:
    """What every detector is fitted on and tried on, and the bare model that it costs more than."""

    name: str
    asked: str
    job: Job
    prepared: Prepared
    tested: Mapping[str, CraftedSet]
    bare: Session
    bare_mib: float
    sizes: Sizes
    out: Path

    @property
    def clean(self) -> NDArray[np.float32]:
        images: NDArray[np.float32] = self.prepared.data.part(Split.TEST).images[:]
        return images

    def answers(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the classes that the model names for unit-space images."""
        parts = [images[start : start + 128] for start in range(0, len(images), 128)]
        return np.concatenate([self.bare.run(("logits",), part)[0].argmax(axis=1) for part in parts])


def say(*words: object) -> None:
    print(f"{time.process_time():7.0f} s", *words, flush=True)


def recipe_of(attacks: Sequence[Mapping[str, Any]], detector: str = "mahalanobis") -> Recipe:
    """Return a recipe of one detector, with its default settings."""
    return parse({"detector": [{"name": detector, "program": "screen"}], "attack": list(attacks)}, "alone")


def first_items(source: Path, target: Path, items: int) -> Path:
    """Write the first images of a file to another, once."""
    if not target.exists():
        with np.load(source) as found:
            np.savez(target, images=found["images"][:items], labels=found["labels"][:items])
    return target


def files_of(data: Path, test: Path, out: Path, sizes: Sizes) -> tuple[Path, Path]:
    """Return files of the first images to fit on and to test on; they are written to the folder `out`, once."""
    out.mkdir(parents=True, exist_ok=True)
    pairs = ((data, "fit", sizes.fit), (test, "test", sizes.test))
    first, second = (first_items(source, out / f"{what}-{items}.npz", items) for source, what, items in pairs)
    return first, second


def opened(name: str, job: Job, sizes: Sizes, out: Path) -> Setting:
    """Open the model and craft the attacks, or read them where an earlier run has."""
    classifier, data = open_job(job)
    job.work.begin()
    attacks = job.recipe.attacks
    learned = crafted_of(job, classifier, learning_items(data), attacks, sizes.learned)
    say("learned from", ", ".join(f"{one.attack[:24]} {len(one)}" for one in learned))
    made = crafted_of(job, classifier, data.part(Split.TEST), attacks, sizes.tried)
    tested = dict(zip(labels_of(attacks, classifier.spec.input.grid), made, strict=True))
    say("tried on", ", ".join(f"{label} {len(one)}" for label, one in tested.items()))
    bare = out / "model.onnx"
    example = torch.from_numpy(data.images[:4])
    model = lower(Outputs(Gather(classifier, [Logits()])), example, input_name=INPUT, output_names=("logits",))
    bare.write_bytes(model.SerializeToString())
    prepared = Prepared(classifier, data, tuple(learned))
    asked = f"{classifier.spec.fingerprint} {attacks} {replace(sizes, timed_s=0)} {job.seed}"
    return Setting(
        name,
        asked,
        job,
        prepared,
        tested,
        Session(bare, device="cpu", threads=1),
        peak_of(bare, BATCHES[-1]),
        sizes,
        out,
    )


def measure(setting: Setting, name: str) -> Row:
    """Fit, compile, calibrate and try one detector."""
    asked, prepared = setting.asked, setting.prepared
    job = replace(setting.job, recipe=setting.job.recipe.having([{"name": name, "program": "screen"}]))
    if (reason := inapplicable(job, prepared.classifier)) is not None:
        return Row(setting.name, name, asked, skipped=reason)
    remembered, began = EvidenceCache(prepared.classifier), time.process_time()
    heads = fit(job, prepared, prepared.programs(job), lambda _: None, remembered)
    fitting_s = time.process_time() - began
    say(f"{name}: fitted in {fitting_s:.0f} s")
    programs = settled(prepared.programs(job), heads)
    graphs = compile_heads(job, prepared, programs, heads)
    calibrated = Calibrator(job, prepared.classifier, programs, graphs.files, prepared.data).calibrate(
        prepared.crafted, ()
    )
    cascade = calibrated.cascade
    parities(graphs, cascade)
    clean = read(cascade, setting.clean)
    by_attack = {label: read(cascade, found.attacked) for label, found in setting.tested.items() if len(found)}
    say(f"{name}: read")
    without = left_out(setting, job, remembered)
    say(f"{name}: fitted without each family")
    theirs = in_their_protocol(setting, job, remembered) if name in COMPARED else {}
    attacks = {
        label: ByAttack(
            setting.tested[label].family,
            figures(clean.risk, found.risk, found.p_value),
            auroc(clean.scores[:, 0], found.scores[:, 0]),
            figures(*without[label]),
            theirs.get(label),
        )
        for label, found in by_attack.items()
    }
    seen = figures(
        clean.risk, *(np.concatenate([getattr(f, x) for f in by_attack.values()]) for x in ("risk", "p_value"))
    )
    microseconds, ratio = timed(setting, cascade.sessions[0], next(iter(graphs.modules.values())))
    head = next(iter(heads.values()))
    data = prepared.data
    return Row(
        setting.name,
        name,
        asked,
        call=repr(head.detector),
        items={
            **{f"clean to {split}": len(data.part(split)) for split in Split},
            "attacked to learn from": sum(map(len, prepared.crafted)),
            "tried": sum(map(len, setting.tested.values())),
        },
        forwards=floor_of(head.detector.needs),
        measured_forwards=ratio,
        microseconds=microseconds,
        memory_mib=memory(setting, name, graphs),
        fitting_s=fitting_s,
        clean=tuple(interval(Rate.of(clean.p_value <= rate)) for rate in RATES),  # type: ignore[arg-type]
        seen=seen,
        left_out=figures(*pooled(list(without.values()))),
        attacks=attacks,
    )


def inapplicable(job: Job, classifier: Classifier) -> str | None:
    """Return why the job's detector cannot be asked of a model; None where it can."""
    (block,) = job.recipe.detectors
    if block["name"] in ASKING:
        return "it asks a second network, which is measured by tests.bench.second"
    detector = built_detector(block, [tap.name for tap in classifier.taps])
    return classifier.kind.refusal(detector) or next(
        (w for need in detector.needs if (w := need.lacks(classifier))), None
    )


Compared = tuple[Floats, Floats, Floats]  # risks of clean test items and of attacked ones, p-values of these


def left_out(setting: Setting, job: Job, remembered: EvidenceCache) -> dict[str, Compared]:
    """Return, by attack, what a guard reads that was fitted without the attack's family, in torch."""
    whole, found = setting.prepared, {}
    for family in dict.fromkeys(one.family for one in setting.tested.values()):
        others = replace(whole, crafted=tuple(one for one in whole.crafted if one.family != family))
        heads = list(fit(job, others, whole.programs(job), lambda _: None, remembered).values())
        guard = TorchGuard(job, others, heads, remembered)
        clean, ranked = guard.risk(setting.clean), np.sort(guard.risk(whole.data.part(Split.CALIBRATE).images[:]))
        for label, one in setting.tested.items():
            if one.family == family and len(one):
                risk = guard.risk(one.attacked)
                found[label] = (clean, risk, rank_p(ranked, risk))
    return found


def in_their_protocol(setting: Setting, job: Job, remembered: EvidenceCache) -> dict[str, float]:
    """Return the AUROC of the detector's own score, by attack, measured as papers measure it, in torch.

    It is fitted anew for each attack, on this attack alone, with noise of the attack's size, and clean items are those
    that the model has right, to fit and to test on.
    """
    whole, found = setting.prepared, {}
    parts = {split: whole.data.part(split) for split in (Split.HEADS, Split.TEST)}
    right = {split: part.take(setting.answers(part.images[:]) == part.labels) for split, part in parts.items()}
    detectors = [one for program in whole.programs(job).values() for one in program]
    for (label, tried), learned in zip(setting.tested.items(), whole.crafted, strict=True):
        own = learned.select(whole.data.splits, Split.HEADS)
        if len(own) and len(tried):
            items = FittingItems(right[Split.HEADS], own.noise, Attacked(own.attacked, (own.attack,) * len(own)))
            heads = list(fit_heads(detectors, items, remembered, seed=job.seed, report=lambda _: None).values())
            sets = (right[Split.TEST].images[:], tried.attacked)
            found[label] = auroc(*(columns(heads, images, remembered)[:, 0] for images in sets))
    return found


class TorchGuard:
    """A guard of these heads with its fusion, not compiled."""

    def __init__(self, job: Job, prepared: Prepared, heads: Sequence[Head], remembered: EvidenceCache) -> None:
        self.heads, self.remembered = heads, remembered
        data, spec = prepared.data, prepared.classifier.spec.input
        attacked, noisy = pool(prepared.crafted, data, Split.COMBINER, spec, job.seed)
        clean, noise, bad = map(self.scores, (data.part(Split.COMBINER).images[:], noisy, attacked.items))
        own = [head.detector.name in INDEPENDENT for head in heads]
        self.fusion = fit_fusion(clean, noise, Attacked(bad, attacked.by), own)

    def scores(self, images: NDArray[np.float32]) -> Floats:
        return columns(self.heads, images, self.remembered)

    def risk(self, images: NDArray[np.float32]) -> Floats:
        return self.fusion.risk(self.scores(images))


def pooled(parts: Sequence[Compared]) -> Compared:
    """Return what several guards read together: an item's risk is its rank among the guard's clean test items."""
    ranks = np.concatenate([placements(clean, attacked) for clean, attacked, _ in parts])
    items = len(parts[0][0])
    return (np.arange(items) + 0.5) / items, ranks, np.concatenate([p_value for _, _, p_value in parts])


def figures(clean: Floats, attacked: Floats, p_value: Floats) -> Figures:
    """Return AUROC and shares caught, with their intervals."""
    first, second = (interval(Rate.of(p_value <= rate)) for rate in RATES)
    return Figures(len(attacked), interval(Area.between(clean, attacked)), (first, second))


def interval(found: Area | Rate) -> Interval:
    return (float(found.value), float(found.low), float(found.high))


def timed(setting: Setting, session: Session, program: Program) -> tuple[dict[str, Interval], float]:
    """Return microseconds an item beyond the bare model, by batch, and the forwards of the largest batch."""
    found, ratio = {}, math.nan
    for batch in BATCHES:
        images = program.spec.box.from_unit(setting.clean[:batch])

        def bare() -> object:
            return setting.bare.run(("logits",), images)  # noqa: B023

        def whole() -> object:
            return session.run(("logits", "scores"), images)  # noqa: B023

        laps = race({"bare": bare, "whole": whole}, seconds=setting.sizes.timed_s, clock=time.thread_time_ns)
        more = spread((laps.of("whole") - laps.of("bare")) / batch)
        found[str(batch)] = (more.median, more.low, more.high)
        ratio = spread(laps.of("whole") / laps.of("bare")).median
    return found, ratio


def memory(setting: Setting, name: str, graphs: Graphs) -> float:
    """Return the peak MiB of a process that runs the program, beyond that of one that runs the model."""
    folder = setting.out / "programs" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in graphs.files.files.items():
        (folder / file).write_bytes(content)
    return peak_of(folder / graphs.files.programs[0].file, BATCHES[-1]) - setting.bare_mib


def measure_all(setting: Setting, names: Sequence[str]) -> list[Row]:
    """Measure each detector that has no row yet, and return the rows of these names."""
    file = setting.out / "rows.jsonl"
    known = {row.detector: row for row in read_rows(file) if (row.data, row.asked) == (setting.name, setting.asked)}
    for name in names:
        if name in known:
            say(f"{name}: known from before")
            continue
        known[name] = measure(setting, name)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(known[name].json + "\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        say(f"{name}: row written; peak {peak:.2f} GiB")
    return [known[name] for name in names]


def quick() -> list[Row]:
    """Run it all on the tests' tiny images: no figures to quote."""
    from tests.offline import tiny

    attacks = ({"name": "pgd", "budget": 0.25, "steps": 8}, {"name": "fgsm", "budget": 0.25})
    sizes = Sizes(learned=100, tried=60, timed_s=0.0)
    with tempfile.TemporaryDirectory() as name:
        job = tiny.job(Path(name), recipe=recipe_of(attacks), threads=1)
        return measure_all(opened("tiny", job, sizes, Path(name)), ["mahalanobis", "bayesian_uncertainty"])


def main(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--quick"]:
        print("\n".join(tables(quick())))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", help="files of rows: print their tables, and measure nothing")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(DETECTORS), help="detectors by name, separated by commas")
    parser.add_argument("--items", type=int, default=Sizes.fit, help="clean images to fit and calibrate on")
    given = parser.parse_args(arguments)
    if given.table:
        print("\n".join(tables([row for file in given.table for row in read_rows(file)])))
        return
    if None in (given.model, given.data, given.test, given.out):
        parser.error("--model, --data, --test and --out are wanted, or --table alone")
    sizes = Sizes(fit=given.items)
    data, test = files_of(given.data, given.test, given.out, sizes)
    job = Job(given.model, data, given.out / "guard", recipe_of(ATTACKS), test=test, threads=1)
    setting = opened(Path(given.data).stem.removesuffix("-fit"), job, sizes, given.out)
    print("\n".join(tables(measure_all(setting, [name for name in given.only.split(",") if name]))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
