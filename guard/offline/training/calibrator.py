"""ProgramFiles programs and crafted sets -> fusion, bands, p-values, and the files of a bundle.

Rule 1: fusion and bands see the combiner's split, p-values the calibration split, and neither an item of the other.
Rule 2: every score comes from the written programs, through the one runtime.
"""

from __future__ import annotations

import io
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle, DetectorSpec, Manifest, write_bundle
from guard.calibration import Band, Calibration
from guard.fusion import unfitted
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.programs.parity import Parity
from guard.offline.programs.read import read
from guard.offline.programs.write_programs import ProgramFiles
from guard.offline.training.fit_fusion import band_leak, early_reject, fit_fusion
from guard.runtime import Runtime

SAMPLES = 16  # inputs that the engine checks itself on


class Calibrator:
    """ProgramFiles programs -> a bundle: fusion and bands from the combiner's split, p-values from calibration's."""

    def __init__(
        self,
        job: Job,
        classifier: Classifier,
        programs: Mapping[str, Sequence[Detector]],
        compiled: ProgramFiles,
        data: Dataset,
    ) -> None:
        self.job = job
        self.classifier = classifier
        self.programs = programs
        self.compiled = compiled
        self.data = data

    def calibrate(self, crafted: Sequence[CraftedSet]) -> tuple[Calibration, dict[str, float]]:
        """Also the share of each crafted attack that the bands would pass early."""
        runtime = Runtime(self.bundle(self.job.work.path / "uncalibrated", self.blank(), {}, {}))
        try:
            return self.fit_and_rank(runtime, crafted)
        finally:
            shutil.rmtree(self.job.work.path / "uncalibrated")

    def fit_and_rank(self, runtime: Runtime, crafted: Sequence[CraftedSet]) -> tuple[Calibration, dict[str, float]]:
        attacked, noisy = pool(crafted, self.data, Split.COMBINER)
        clean = read(runtime, self.data.part(Split.COMBINER).images).scores
        noise, bad = read(runtime, noisy).scores, read(runtime, attacked.items).scores
        sizes = runtime.calibration.programs
        ends = np.cumsum(sizes)
        fusions = tuple(fit_fusion(clean[:, :end], noise[:, :end], attacked.seen_as(bad[:, :end])) for end in ends)
        bands = tuple(
            early_reject(fusion.risk(clean[:, :end]), self.job.reject_rate)
            for fusion, end in zip(fusions[:-1], ends[:-1], strict=True)
        )
        leaks: dict[str, float] = {}
        for fusion, band, end in zip(fusions[:-1], bands, ends[:-1], strict=True):
            leaks |= band_leak(band, attacked.seen_as(fusion.risk(bad[:, :end])))
        fitted = replace(runtime.calibration, fusions=fusions, bands=bands)
        ranked = read(runtime.with_calibration(fitted), self.data.part(Split.CALIBRATE).images)
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
            empty = self.classifier.spec.input.box.from_unit(self.data.images[:0])
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
        images = self.data.part(Split.COMBINER).images[: 4 * SAMPLES]
        runtime = Runtime(self.bundle(self.job.work.path / "sampling", replace(self.blank()), {}, {})).with_calibration(
            calibration
        )
        shutil.rmtree(self.job.work.path / "sampling")
        readings = read(runtime, images)
        rates = np.asarray([self.job.reject_rate, self.job.flag_rate])
        near = np.abs(readings.p_value[:, None] - rates).min(axis=1) < 3 / (calibration.items + 1)
        keep = np.flatnonzero(~near)[:SAMPLES]
        return {
            "images": self.classifier.spec.input.box.from_unit(images[keep]),
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


def pool(crafted: Sequence[CraftedSet], data: Dataset, split: Split) -> tuple[Attacked[Images], Images]:
    """The attacked items of all sets in one split, and the noise beside them."""
    parts = [found.select(data.splits, split) for found in crafted]
    blank = np.zeros((0, *data.item_shape), dtype=np.float32)
    attacked = np.concatenate([blank, *(p.attacked for p in parts)])
    noisy = np.concatenate([blank, *(p.noise for p in parts)])
    return Attacked(attacked, tuple(part.attack for part in parts for _ in range(len(part)))), noisy


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An .npz in memory, the same bytes for the same arrays."""
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
