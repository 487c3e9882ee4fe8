"""Calibration: written programs and crafted sets -> fusion, bands, p-values, and the files of a bundle.

Rule 1: fusion and bands see the combiner's split, p-values the calibration split, and neither an item of the other.
Rule 2: every score comes from the written programs, through the one cascade.
Rule 3: nothing is written until all is known; then a bundle is written once.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.answer_evidence import AnswerCalibration
from guard.bundle import ANSWER_CALIBRATION, CALIBRATION, Bundle, identity, write_bundle
from guard.calibration import Band, Calibration
from guard.cascade import Cascade
from guard.fusion import unfitted
from guard.manifest import DetectorSpec, Manifest, NeedSpec
from guard.near_copies import Nearness
from guard.offline.crafting.crafted_set import CraftedSet, Transfer
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.detectors.table import INDEPENDENT
from guard.offline.evidence.kinds.second import SecondNetwork, networks_of
from guard.offline.job.job import Job
from guard.offline.model.answering import Answering
from guard.offline.model.classifier import Classifier
from guard.offline.programs.opened_guard import OpenedGuard, Rates
from guard.offline.programs.parity import Parity
from guard.offline.programs.read import read
from guard.offline.programs.verdicts import Verdicts
from guard.offline.programs.write_programs import ProgramFiles
from guard.offline.training.answer_calibration import calibrate_answers
from guard.offline.training.choose_detectors import DetectorChoice
from guard.offline.training.choose_share import KeptShare, choose_share
from guard.offline.training.family_scores import FamilyScores
from guard.offline.training.fit_fusion import band_leak, early_reject, fit_fusion
from guard.offline.training.pooled_items import pool
from guard.offline.training.sources import source_facts
from guard.session import Session

SAMPLE_ITEMS = 16  # inputs that the engine checks itself on


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The written programs under their calibration."""

    cascade: Cascade
    leaks: Mapping[str, float]  # the share of each crafted attack that the bands would pass early
    kept: KeptShare  # for evidence that needs no attacks
    transfers: Mapping[str, Transfer] = field(default_factory=dict)  # of each crafted attack, where the model is closed
    answers: AnswerCalibration | None = None  # of a closed model


@dataclass(frozen=True, eq=False)
class Calibrator:
    """A calibrator of written programs: fusion and bands from the combiner's split, p-values from calibration's."""

    job: Job
    classifier: Classifier
    programs: Mapping[str, Sequence[Detector]]
    files: ProgramFiles
    data: Dataset
    choice: DetectorChoice | None = None  # of the detectors, where they were chosen

    def calibrate(self, crafted: Sequence[CraftedSet], left_out: Sequence[FamilyScores]) -> Calibrated:
        """Fit fusion and bands, and rank the clean items.

        `left_out` are scores by heads fitted without a family, which choose the share of the rate that is kept for
        evidence that needs no attacks; without any it is the usual one.
        """
        cascade = self.uncalibrated()
        attacked, noisy = pool(crafted, self.data, Split.COMBINER, self.classifier.spec.input, self.job.seed)
        fitted_on = self.data.part(Split.COMBINER).images
        seen = read(cascade, fitted_on)
        clean = seen.scores
        noise, bad = read(cascade, noisy).scores, read(cascade, attacked.items).scores
        ends = np.cumsum(cascade.calibration.programs)
        independent = [d.name in INDEPENDENT for ds in self.programs.values() for d in ds]
        kept = choose_share(left_out, independent)
        fusions = tuple(
            fit_fusion(
                clean[:, :end], noise[:, :end], attacked.seen_as(bad[:, :end]), independent[:end], kept.rate_share
            )
            for end in ends
        )
        bands = tuple(
            early_reject(fusion.risk(clean[:, :end]), self.job.reject_rate)
            for fusion, end in zip(fusions[:-1], ends[:-1], strict=True)
        )
        leaks: dict[str, float] = {}
        for fusion, band, end in zip(fusions[:-1], bands, ends[:-1], strict=True):
            leaks |= band_leak(band, attacked.seen_as(fusion.risk(bad[:, :end])))
        fitted = replace(cascade.calibration, fusions=fusions, bands=bands)
        to_rank = self.data.part(Split.CALIBRATE).images
        ranked = read(cascade.with_calibration(fitted), to_rank)
        nearness = Nearness.of(to_rank) if self.classifier.spec.input.axes.places else None
        calibration = replace(fitted, clean_risks=ranked.risk, clean_scores=ranked.scores, nearness=nearness)
        transfers = {one.attack: one.transfer for one in crafted if one.transfer is not None}
        answers = None
        if (answering := self.classifier.answering) is not None:
            combiner, last = (seen, fitted_on), (ranked, to_rank)
            answers = calibrate_answers(calibration, answering, combiner, last, cascade.spec.box)
        return Calibrated(cascade.with_calibration(calibration), leaks, kept, transfers, answers)

    def uncalibrated(self) -> Cascade:
        """Load the written programs under a calibration of the right shape that promises nothing yet."""
        names = tuple(d.name for detectors in self.programs.values() for d in detectors)
        sizes = tuple(len(detectors) for detectors in self.programs.values())
        fusions = tuple(unfitted(np.zeros((2, end))) for end in np.cumsum(sizes))
        bands = (Band(),) * (len(sizes) - 1)
        calibration = Calibration(names, sizes, fusions, bands, np.zeros(1), np.zeros((1, len(names))))
        spec = self.classifier.spec
        sessions = tuple(
            Session(self.files.in_memory(program.file), device="cpu", threads=None) for program in self.files.programs
        )
        return Cascade(spec.input, spec.output.classes, self.files.programs, sessions, calibration)

    def opened(self, calibrated: Calibrated, heads: Mapping[str, Head]) -> OpenedGuard:
        """Return the guard as an attacker opens it, before it is in any bundle."""
        content = self.content(calibrated)
        programs = self.files.programs
        return OpenedGuard(
            self.classifier,
            self.programs,
            heads,
            calibrated.cascade,
            Rates(self.job.reject_rate, self.job.flag_rate),
            identity(programs, lambda name: hashlib.sha256(content[name]).hexdigest() if name in content else None),
            {program.name: content[program.file] for program in programs},
        )

    def content(self, calibrated: Calibrated) -> dict[str, bytes]:
        """Return the files that decide the answers: graphs, weights and calibration."""
        answers = {} if calibrated.answers is None else {ANSWER_CALIBRATION: npz(calibrated.answers.to_arrays())}
        return {**self.files.files, CALIBRATION: npz(calibrated.cascade.calibration.to_arrays()), **answers}

    def bundle(
        self,
        path: Path,
        calibrated: Calibrated,
        parity: Mapping[str, Parity],
        reports: Mapping[str, bytes],
        verdicts: Verdicts | None = None,
        *,
        cuts: Mapping[str, Sequence[str]] | None = None,
    ) -> Bundle:
        """Write the bundle to `path` and open it; `cuts` are what was cut of guard and report, in words."""
        manifest = self.manifest(calibrated, parity, verdicts, cuts or {})
        samples = npz(self.samples(calibrated.cascade))
        return write_bundle(path, manifest, {**self.content(calibrated), **reports, "samples.npz": samples})

    def samples(self, cascade: Cascade) -> dict[str, NDArray[Any]]:
        """Return clean inputs of the combiner's split, none near a threshold, with the readings they must give."""
        images = self.data.part(Split.COMBINER).images[: 4 * SAMPLE_ITEMS]
        readings = read(cascade, images)
        rates = np.asarray([self.job.reject_rate, self.job.flag_rate])
        near = np.abs(readings.p_value[:, None] - rates).min(axis=1) < 3 / (cascade.calibration.items + 1)
        keep = np.flatnonzero(~near)[:SAMPLE_ITEMS]
        return {
            "images": cascade.spec.box.from_unit(images[keep]),
            "logits": readings.logits[keep],
            "scores": readings.scores[keep],
            "p_values": readings.p_value[keep],
        }

    def networks(self) -> tuple[SecondNetwork, ...]:
        """Return the second networks that the detectors ask."""
        return networks_of(need for ds in self.programs.values() for d in ds for need in d.needs)

    def manifest(
        self,
        calibrated: Calibrated,
        parity: Mapping[str, Parity],
        verdicts: Verdicts | None,
        cuts: Mapping[str, Sequence[str]],
    ) -> Manifest:
        job = self.job
        return Manifest(
            model=self.classifier.spec,
            programs=self.files.programs,
            detectors=tuple(
                DetectorSpec(d.name, repr(d), tuple(NeedSpec(repr(need), need.rides) for need in d.needs))
                for ds in self.programs.values()
                for d in ds
            ),
            repairs=self.files.repairs,
            reject_rate=job.reject_rate,
            flag_rate=job.flag_rate,
            recipe={"name": job.recipe.name, **job.recipe.raw},
            seed=job.seed,
            made_by=made_by(),
            provenance={
                "classes": "names, as labelled" if self.classifier.spec.output.labels else "numbers, as labelled",
                "splits": {split.value: len(self.data.part(split)) for split in Split},
                "sources": source_facts(job, self.data),
                "bands": [[str(b.low), str(b.high)] for b in calibrated.cascade.calibration.bands],
                "early_pass_share": dict(calibrated.leaks),
                "fusion": calibrated.kept.facts,
                "parity": {name: asdict(p) for name, p in parity.items()},
                "served": {} if (found := self.classifier.difference) is None else asdict(found),
                "student": student_facts(self.classifier.answering, calibrated.transfers),
                "second": [one.in_words for one in self.networks()],
                "choice": {} if self.choice is None else self.choice.facts,
                "verdicts": {} if verdicts is None else asdict(verdicts),
                "cuts": {what: list(texts) for what, texts in cuts.items()},
            },
        )


def student_facts(answering: Answering | None, transfers: Mapping[str, Transfer]) -> dict[str, Any]:
    """Return what a manifest says of a closed model and its student; nothing where the model was opened."""
    if answering is None:
        return {}
    whole = Transfer.together(list(transfers.values()))
    share = None if whole.misled == 0 else whole.share  # JSON has no NaN
    by_attack = {name: asdict(one) for name, one in transfers.items()}
    return {**answering.facts, "attacked": asdict(whole), "transfer": share, "attacks": by_attack}


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as an .npz in memory, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def made_by() -> dict[str, str]:
    """Return the versions of what makes a bundle."""
    found = {"python": platform.python_version()}
    for name in ("inference-guard", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
