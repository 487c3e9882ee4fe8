"""`guard train`: a model and clean data -> a bundle, stage by stage.

Rule 1: heads, combiner, calibration and test never share an item.
Rule 2: until the last stage nothing is at `--out`; what is slow to make lies in `OUT.work` and is taken up again.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.arrays import Examples, from_unit, read_examples, to_unit, to_wire
from guard.bundle import Bundle, DetectorSpec, Manifest, write_bundle
from guard.calibration import Band, Calibration, check_promise, unfitted
from guard.errors import BundleError, ConfigError, DataError, PromiseError
from guard.offline.compile import Cleaner, Compiled, Parity, Program, check_parity, compile_programs
from guard.offline.craft import CraftedSet, craft
from guard.offline.data import SHARES, Split, assign, content_hashes, grid_of, members
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evaluate import read
from guard.offline.fit import BATCH, fit_heads, save_heads
from guard.offline.fusion import band_leak, early_reject, fit_fusion
from guard.offline.measure import Effort, HeldOut, Subject, measure
from guard.offline.model.classifier import Classifier
from guard.offline.model.source import Source, open_model
from guard.offline.progress import Stage, Stages, short
from guard.offline.recipe import Recipe
from guard.offline.report import to_html, to_json
from guard.offline.threads import choose_threads
from guard.runtime import Runtime, Session

SAMPLES = 16  # inputs that the engine checks itself on
PARITY_ITEMS = 100
FEWEST_VERIFIED = 300  # of each attack, to fit on
FEWEST_CLEAN = 20  # in each split
WHOLE = {Split.HEADS: 0.35, Split.COMBINER: 0.15, Split.CALIBRATE: 0.25, Split.TEST: 0.25}


@dataclass(frozen=True)
class Job:
    """What `guard train` was asked to do."""

    model: str
    data: Path
    out: Path
    recipe: Recipe
    test: Path | None = None
    reject_rate: float = 0.01
    flag_rate: float = 0.05
    seed: int = 0
    threads: int | None = None  # of torch; None: the quicker of one and all. Another number can change the last bits
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    input_name: str | None = None
    output_name: str | None = None
    output: str = "logits"
    serves: str = "model"
    labels: tuple[str, ...] = ()
    craft_items: int = 1000  # clean items that each attack is tried on, for fitting
    attack_items: int = 300  # and for the report
    adaptive_items: int = 50
    adaptive_steps: int = 100

    @property
    def work(self) -> Path:
        """Beside the bundle: crafted shards, heads, splits."""
        return self.out.with_name(self.out.name + ".work")


@dataclass(frozen=True)
class Data:
    """Clean items in unit space, split by content hash."""

    images: NDArray[np.float32]  # [item, ...]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]  # [item]
    splits: Mapping[str, Split]  # of each hash
    name: str

    def part(self, split: Split) -> NDArray[np.int64]:
        """Indices of a split's items, in the order of their hashes: an order that knows nothing of their scores."""
        chosen = np.flatnonzero(members(self.hashes, self.splits, split))
        return np.asarray(chosen[np.argsort(self.hashes[chosen], kind="stable")], dtype=np.int64)

    def held_out(self) -> HeldOut:
        """The items that only the report sees."""
        test = self.part(Split.TEST)
        return HeldOut(self.images[test], self.labels[test], self.hashes[test], self.name)


@dataclass(frozen=True)
class Prepared:
    """Everything that fitting starts from."""

    classifier: Classifier
    data: Data
    crafted: tuple[CraftedSet, ...]  # of the heads and combiner splits


def train(job: Job, stages: Stages) -> Bundle:
    """Craft, fit, compile, calibrate, measure, and write the bundle.

    Raises:
        GuardError: whatever is wrong with model, data, recipe or promise, before anything is at `job.out`.
    """
    return finish(job, prepare(job, stages), stages)


def prepare(job: Job, stages: Stages) -> Prepared:
    """Open model and data, check the promise, and craft the attacks to learn from."""
    if job.out.exists():
        raise BundleError(f"{job.out} exists, and a bundle is never changed; name another --out or remove it first")
    with stages.stage("open model and data"):
        classifier, data = open_job(job)
        check_data(job, classifier, data)
        job.recipe.programs([tap.name for tap in classifier.taps])
        if not job.recipe.adaptive_budgets:
            raise ConfigError(f"recipe {job.recipe.name}: [adaptive] budgets = [...] is missing: no report without it")
        write_work(job, data)
        choose_threads(classifier.graph, torch.from_numpy(data.images[:BATCH]), job.threads)
    with stages.stage("craft attacks") as progress:
        crafted = craft_all(job, classifier, data, progress)
        for found in crafted:
            few = f", wanted {FEWEST_VERIFIED}" if len(found) < FEWEST_VERIFIED else ""
            progress.say(f"  {short(found.attack, 36):<36} fools the model on {len(found)} of {found.tried}{few}")
    return Prepared(classifier, data, crafted)


def finish(job: Job, prepared: Prepared, stages: Stages) -> Bundle:
    """Fit, compile, calibrate, measure, and write the bundle."""
    classifier, data, crafted = prepared.classifier, prepared.data, prepared.crafted
    programs = job.recipe.programs([tap.name for tap in classifier.taps])
    with stages.stage("fit detectors") as progress:
        heads = fit(job, prepared, programs, progress.note)
        save_heads(heads, job.work / "heads")
    with stages.stage("compile to ONNX"):
        modules = {name: Program(classifier, ds, [heads[d.name] for d in ds]) for name, ds in programs.items()}
        cleaners = {denoiser.name: Cleaner(denoiser, classifier.spec.input) for denoiser in job.recipe.repairs}
        wire = from_unit(data.images[data.part(Split.COMBINER)][:PARITY_ITEMS], classifier.spec.input)
        compiled = compile_programs(modules, cleaners, wire)
    with stages.stage("calibrate"):
        calibrator = Calibrator(job, classifier, programs, compiled, data)
        calibration, leaks = calibrator.calibrate(crafted)
        provisional = calibrator.bundle(job.work / "provisional", calibration, leaks, {})
        parity = parities(modules, provisional, wire)
    with stages.stage("measure on held-out data") as progress:
        subject = Subject(classifier, programs, heads, Runtime(provisional))
        effort = Effort(job.attack_items, job.adaptive_items, job.adaptive_steps, job.seed, job.work / "crafted")
        evaluation = measure(subject, data.held_out(), job.recipe, effort, progress)
    with stages.stage("write bundle"):
        reports = {"report.json": to_json(evaluation).encode(), "report.html": to_html(evaluation).encode()}
        bundle = calibrator.bundle(job.out, calibration, leaks, reports, parity)
        shutil.rmtree(job.work / "provisional")
    return bundle


def open_job(job: Job) -> tuple[Classifier, Data]:
    """Raises DataError, ModelError."""
    examples = read_examples(job.data)
    shape = item_shape(examples)
    source = Source(
        job.model, shape, job.low, job.high, None, job.input_name, job.output_name, job.output, job.serves, job.labels
    )
    classifier = open_model(source)
    data = split_data(job, classifier, examples)
    spec = replace(classifier.spec.input, grid=grid_of(data.images))
    return replace(classifier, spec=replace(classifier.spec, input=spec)), data


def item_shape(examples: Examples) -> tuple[int, ...]:
    """Of one item as the model takes it."""
    images = examples.images
    if images.dtype == np.uint8 and images.ndim == 4:
        return (images.shape[3], images.shape[1], images.shape[2])
    return tuple(images.shape[1:])


def split_data(job: Job, classifier: Classifier, examples: Examples) -> Data:
    wire = to_wire(examples.images, classifier.spec.input, examples.source)
    hashes = content_hashes(wire)
    splits = assign(hashes, shares=WHOLE if job.test is None else SHARES, seed=job.seed)
    unit = np.clip(to_unit(wire, classifier.spec.input), 0.0, 1.0)
    data = Data(unit, examples.labelled(), hashes, splits, examples.source)
    if job.test is None:
        return data
    held_out = read_examples(job.test)
    test_wire = to_wire(held_out.images, classifier.spec.input, held_out.source)
    test_hashes = content_hashes(test_wire)
    if shared := set(test_hashes.tolist()) & set(hashes.tolist()):
        raise DataError(
            f"{held_out.source} and {examples.source} share {len(shared)} items; test data must be held out"
        )
    return Data(
        np.concatenate([data.images, np.clip(to_unit(test_wire, classifier.spec.input), 0.0, 1.0)]),
        np.concatenate([data.labels, held_out.labelled()]),
        np.concatenate([hashes, test_hashes]),
        {**splits, **dict.fromkeys(test_hashes.tolist(), Split.TEST)},
        held_out.source,
    )


def check_data(job: Job, classifier: Classifier, data: Data) -> None:
    """Raises DataError for labels that the model does not have, or too few items; PromiseError for rates."""
    classes = classifier.spec.output.classes
    if int(data.labels.max()) >= classes:
        bad = int(np.flatnonzero(data.labels >= classes)[0])
        raise DataError(
            f"{data.name}: item {bad} has label {int(data.labels[bad])}; the model has classes 0 to {classes - 1}"
        )
    calibrating = len(data.part(Split.CALIBRATE))
    if job.flag_rate < job.reject_rate:
        raise PromiseError(
            f"flag rate {job.flag_rate:g} is below reject rate {job.reject_rate:g}; "
            "every rejected item counts as flagged"
        )
    for name, rate in (("reject rate", job.reject_rate), ("flag rate", job.flag_rate)):
        check_promise(rate, calibrating, name=name)
    for split in Split:
        if (found := len(data.part(split))) < FEWEST_CLEAN:
            raise DataError(
                f"{data.name}: {found} clean items fall to {split.value}; at least {FEWEST_CLEAN} are needed, so bring "
                f"about {FEWEST_CLEAN * len(data.images) // max(found, 1)} items"
            )


def write_work(job: Job, data: Data) -> None:
    """The split by content hash, and what the model and recipe were, for `guard evaluate`."""
    job.work.mkdir(parents=True, exist_ok=True)
    (job.work / "splits.json").write_text(json.dumps(data.splits, indent=0, sort_keys=True), encoding="utf-8")
    settings = {key: value for key, value in asdict(job).items() if key not in ("recipe", "out")}
    settings |= {"recipe": {"name": job.recipe.name, "raw": job.recipe.raw}}
    (job.work / "job.json").write_text(json.dumps(settings, indent=2, default=str), encoding="utf-8")


def craft_all(job: Job, classifier: Classifier, data: Data, progress: Stage) -> tuple[CraftedSet, ...]:
    """Every attack that is learned from, on the items of the splits that are fitted on."""
    shares = {Split.HEADS: 0.7, Split.COMBINER: 0.3}
    index = np.concatenate([data.part(s)[: math.ceil(share * job.craft_items)] for s, share in shares.items()])
    return craft(
        classifier.graph,
        data.images[index],
        data.labels[index],
        data.hashes[index],
        job.recipe.attacks,
        grid=classifier.spec.input.grid,
        work=job.work / "crafted",
        fingerprint=classifier.spec.fingerprint,
        seed=job.seed,
        progress=progress.items,
    )


def fit(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    note: Callable[[str], None],
) -> dict[str, Head]:
    data = prepared.data
    part = data.part(Split.HEADS)
    attacked, noisy, families = pool(prepared.crafted, data, Split.HEADS)
    return fit_heads(
        prepared.classifier,
        [d for detectors in programs.values() for d in detectors],
        clean=data.images[part],
        labels=data.labels[part],
        noisy=noisy,
        attacked=attacked,
        families=families,
        seed=job.seed,
        report=note,
    )


def pool(
    crafted: Sequence[CraftedSet], data: Data, split: Split
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[str, ...]]:
    """Attacked items, noise and family names of all sets, restricted to one split."""
    parts = [found.select(data.splits, split) for found in crafted]
    shape = data.images.shape[1:]
    blank = np.zeros((0, *shape), dtype=np.float32)
    attacked = np.concatenate([blank, *(p.attacked for p in parts)])
    noisy = np.concatenate([blank, *(p.noise for p in parts)])
    return attacked, noisy, tuple(p.attack for p in parts for _ in range(len(p.attacked)))


class Calibrator:
    """Compiled programs -> a bundle: fusion and bands from the combiner's split, p-values from calibration's."""

    def __init__(
        self,
        job: Job,
        classifier: Classifier,
        programs: Mapping[str, Sequence[Detector]],
        compiled: Compiled,
        data: Data,
    ) -> None:
        self.job = job
        self.classifier = classifier
        self.programs = programs
        self.compiled = compiled
        self.data = data

    def calibrate(self, crafted: Sequence[CraftedSet]) -> tuple[Calibration, dict[str, float]]:
        """Also the share of each crafted family that the bands would pass early."""
        runtime = Runtime(self.bundle(self.job.work / "uncalibrated", self.blank(), {}, {}))
        try:
            return self.fit_and_rank(runtime, crafted)
        finally:
            shutil.rmtree(self.job.work / "uncalibrated")

    def fit_and_rank(self, runtime: Runtime, crafted: Sequence[CraftedSet]) -> tuple[Calibration, dict[str, float]]:
        attacked, noisy, families = pool(crafted, self.data, Split.COMBINER)
        clean = read(runtime, self.data.images[self.data.part(Split.COMBINER)]).scores
        noise, bad = read(runtime, noisy).scores, read(runtime, attacked).scores
        sizes = runtime.calibration.programs
        ends = np.cumsum(sizes)
        fusions = tuple(fit_fusion(clean[:, :end], noise[:, :end], bad[:, :end], families) for end in ends)
        bands = tuple(
            early_reject(fusion.risk(clean[:, :end]), self.job.reject_rate)
            for fusion, end in zip(fusions[:-1], ends[:-1], strict=True)
        )
        leaks: dict[str, float] = {}
        for fusion, band, end in zip(fusions[:-1], bands, ends[:-1], strict=True):
            leaks |= band_leak(band, fusion.risk(bad[:, :end]), families)
        fitted = replace(runtime.calibration, fusions=fusions, bands=bands)
        ranked = read(runtime.with_calibration(fitted), self.data.images[self.data.part(Split.CALIBRATE)])
        return replace(fitted, clean_risks=ranked.risk, clean_scores=ranked.scores), leaks

    def blank(self) -> Calibration:
        """A calibration of the right shape that promises nothing yet."""
        names = tuple(d.name for detectors in self.programs.values() for d in detectors)
        sizes = tuple(len(detectors) for detectors in self.programs.values())
        fusions = tuple(unfitted(np.zeros((2, end))) for end in np.cumsum(sizes))
        return Calibration(names, sizes, fusions, (Band(),) * (len(sizes) - 1), np.zeros(1), np.zeros((1, len(names))))

    def bundle(
        self,
        path: Path,
        calibration: Calibration,
        leaks: Mapping[str, float],
        reports: Mapping[str, bytes],
        parity: Mapping[str, Parity] | None = None,
    ) -> Bundle:
        """Write a bundle with this calibration."""
        if path.exists() and path != self.job.out:
            shutil.rmtree(path)
        manifest = self.manifest(calibration, leaks, parity or {})
        files = {**self.compiled.files, **reports, "calibration.npz": npz(calibration.to_arrays())}
        if calibration.items < 2:
            empty = from_unit(self.data.images[:0], self.classifier.spec.input)
            samples = {
                "images": empty,
                "logits": np.zeros((0, self.classifier.spec.output.classes), dtype=np.float32),
                "scores": np.zeros((0, len(calibration.detectors))),
                "p_values": np.zeros(0),
            }
            return write_bundle(path, manifest, {**files, "samples.npz": npz(samples)})
        return write_bundle(path, manifest, {**files, "samples.npz": npz(self.samples(calibration))})

    def samples(self, calibration: Calibration) -> dict[str, NDArray[Any]]:
        """Clean inputs of the combiner's split, none of them near a threshold, with the readings they must give."""
        part = self.data.part(Split.COMBINER)[: 4 * SAMPLES]
        runtime = Runtime(self.bundle(self.job.work / "sampling", replace(self.blank()), {}, {})).with_calibration(
            calibration
        )
        shutil.rmtree(self.job.work / "sampling")
        readings = read(runtime, self.data.images[part])
        rates = np.asarray([self.job.reject_rate, self.job.flag_rate])
        near = np.abs(readings.p_value[:, None] - rates).min(axis=1) < 3 / (calibration.items + 1)
        keep = np.flatnonzero(~near)[:SAMPLES]
        return {
            "images": from_unit(self.data.images[part[keep]], self.classifier.spec.input),
            "logits": readings.logits[keep],
            "scores": readings.scores[keep],
            "p_values": readings.p_value[keep],
        }

    def manifest(self, calibration: Calibration, leaks: Mapping[str, float], parity: Mapping[str, Parity]) -> Manifest:
        job = self.job
        return Manifest(
            model=self.classifier.spec,
            programs=self.compiled.programs,
            detectors=tuple(
                DetectorSpec(d.name, repr(d), tuple(repr(need) for need in d.needs))
                for ds in self.programs.values()
                for d in ds
            ),
            repairs=self.compiled.repairs,
            reject_rate=job.reject_rate,
            flag_rate=job.flag_rate,
            recipe={"name": job.recipe.name, **job.recipe.raw},
            seed=job.seed,
            made_by=made_by(),
            provenance={
                "splits": {split.value: len(self.data.part(split)) for split in Split},
                "bands": [[str(b.low), str(b.high)] for b in calibration.bands],
                "early_pass_share": dict(leaks),
                "parity": {name: asdict(p) for name, p in parity.items()},
            },
        )


def parities(modules: Mapping[str, Program], bundle: Bundle, wire: NDArray[np.float32]) -> dict[str, Parity]:
    """Each written program against torch. Raises ParityError."""
    found = {}
    for spec in bundle.manifest.programs:
        session = Session(bundle.path / spec.file, device="cpu", threads=None)
        found[spec.name] = check_parity(spec.name, modules[spec.name], session, wire)
    return found


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An .npz in memory, the same bytes for the same arrays."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def made_by() -> dict[str, str]:
    """Versions of what makes a bundle."""
    found = {"python": platform.python_version()}
    for name in ("inference-guard", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
