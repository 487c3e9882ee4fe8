"""The path of every bundle, the served one and those fitted without a family: crafted sets -> heads -> programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from guard.cascade import Cascade
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evidence.cache import EvidenceCache, Gathered
from guard.offline.evidence.kinds.second import networks_of
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.programs.parity import Parity, check_parity
from guard.offline.programs.program import Cleaner, Program
from guard.offline.programs.write_programs import ProgramFiles, compile_programs
from guard.offline.training.fit_heads import FittingItems, fit_heads
from guard.offline.training.learned_repairs import lessons_of, trained
from guard.offline.training.pooled_items import pool
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_json, write_json

PARITY_ITEMS = 100


@dataclass(frozen=True)
class Prepared:
    """The inputs of fitting: the model, the data and the crafted sets."""

    classifier: Classifier
    data: Dataset
    crafted: tuple[CraftedSet, ...]  # of the heads and combiner splits
    cuts: tuple[str, ...] = ()  # what of the guard is smaller than its recipe wants, in words

    def programs(self, job: Job) -> dict[str, list[Detector]]:
        return job.recipe.programs([tap.name for tap in self.classifier.taps])


@dataclass(frozen=True)
class Graphs:
    """The programs in torch and as files, and real inputs on which the two must agree."""

    modules: Mapping[str, Program]
    files: ProgramFiles
    wire: NDArray[np.float32]


def fit(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    note: Callable[[str], None],
    gathered: Gathered | None = None,
) -> dict[str, Head]:
    """Fit every detector's head on the heads split; `gathered` may remember evidence. Raises DataError."""
    data = prepared.data
    attacked, noisy = pool(prepared.crafted, data, Split.HEADS, prepared.classifier.spec.input, job.seed)
    return fit_heads(
        [d for detectors in programs.values() for d in detectors],
        FittingItems(data.part(Split.HEADS), noisy, attacked),
        gathered or EvidenceCache(prepared.classifier),
        seed=job.seed,
        report=note,
    )


def compile_heads(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    heads: Mapping[str, Head],
    *,
    repairs: bool = True,
) -> Graphs:
    """Compile the programs of fitted heads, and the repairs of a guard that will be served.

    Raises:
        ModelError: something has no ONNX form.
        DataError: the items do not suffice for a repair that is learned.
    """
    classifier, data = prepared.classifier, prepared.data
    modules = {name: Program(classifier, [heads[d.name] for d in ds]) for name, ds in programs.items()}
    seconds = networks_of(need for head in heads.values() for need in head.detector.needs)
    wanted = job.recipe.repairs if repairs else ()
    lessons = partial(lessons_of, classifier, data, prepared.crafted, heads, job.seed)
    cleaners = {denoiser.name: Cleaner(denoiser, classifier, seconds) for denoiser in trained(wanted, lessons)}
    wire = classifier.spec.input.box.from_unit(data.part(Split.COMBINER).images[:PARITY_ITEMS])
    return Graphs(modules, compile_programs(modules, cleaners, wire), wire)


def parities(graphs: Graphs, cascade: Cascade) -> dict[str, Parity]:
    """Check each written program against torch. Raises ParityError."""
    return {
        program.name: check_parity(program.name, graphs.modules[program.name], session, graphs.wire)
        for program, session in zip(cascade.programs, cascade.sessions, strict=True)
    }


def write_seconds(work: WorkDirectory, seconds: float) -> None:
    """Record how long fitting, compiling and calibrating took: about what a guard without a family will take."""
    write_json(work.seconds, {"build": round(seconds, 1)})


def read_seconds(work: WorkDirectory) -> float | None:
    """Return the seconds that `write_seconds` recorded; None where there is no such record."""
    try:
        return float(read_json(work.seconds)["build"])
    except (ValueError, KeyError, TypeError):
        return None
