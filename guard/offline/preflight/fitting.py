"""Forecast of the seconds in which a guard is fitted: evidence, heads with all attacks and without each family.

How it works. Evidence and heads are timed on a few items, with one made-up attack for each of the recipe's, and
multiplied by the items that the training will have. Heads are fitted once on all of them. Then once without each
family, on at most MAX_FITTED_ITEMS of each kind; where detectors are chosen within a limit of forwards, all candidates
are, on at most FITTED_ITEMS of each kind. Evidence is gathered once.

Example: 1,000 clean items to fit heads on, 400 of the combiner, 800 and 500 to calibrate and to test on; eight attacks
of five families, 1,000 verified items each. Beside each clean item stand three harmless changes of it, beside
each attacked one noise of its size. So evidence is gathered of 4 x 1,400 + 2 x 8,000 = 21,600 items in torch, and in
programs of 4 x 400 + 2 x 2,400 + 1,300 = 7,700. Heads see 4 x 1,000 + 2 x 5,600 = 15,200 items, and five times 1,800.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from guard.errors import DataError
from guard.offline.crafting.stage import LEARNING, TIMED_TRIES
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.gather import Gather
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.training.candidates import FITTED_ITEMS, candidates_of
from guard.offline.training.family_scores import MIN_FAMILIES
from guard.offline.training.fit_heads import FittingItems, fit_heads
from guard.offline.training.left_out_scores import MAX_FITTED_ITEMS
from guard.offline.training.pooled_items import NOISE_COPIES

OPERATOR_EXPORT_S = 0.1  # to write one operator of the model into one program, forward and gradient
TIMED_ITEMS = 32  # items on which the evidence is timed
TIMED_FIT_ITEMS = 64  # of each kind, clean, noisy and attacked, on which the heads are timed
HARMLESS_COPIES = 1 + NOISE_COPIES  # of a clean item that are no attacks: a natural change and noise
FITTED_PARTS = 3  # clean, noisy and attacked items


@dataclass(frozen=True)
class FittingSize:
    """How many items pass through the evidence, the programs and the fits of heads."""

    gathered: int  # of which evidence is gathered in torch
    read: int  # by the written programs
    fitted: int  # that heads of the recipe's detectors are fitted on, all fits together

    @staticmethod
    def of(job: Job, data: Dataset, candidates: int, detectors: int) -> FittingSize:
        """Count the items of a job; where detectors are chosen there are more candidates than detectors."""
        sizes = {split: len(data.places(split)) for split in Split}
        attacks = job.recipe.attacks
        learned = {split: round(len(attacks) * share * verified(job)) for split, share in LEARNING.items()}
        clean = {split: (1 + HARMLESS_COPIES) * sizes[split] for split in LEARNING}
        families = len({str(attack.family) for attack in attacks})
        most = MAX_FITTED_ITEMS if job.cost is None else round(FITTED_ITEMS * candidates / max(detectors, 1))
        fits = families if families >= MIN_FAMILIES else 0
        few = min(most * FITTED_PARTS, clean[Split.HEADS] + 2 * learned[Split.HEADS])
        return FittingSize(
            sum(clean.values()) + 2 * sum(learned.values()),
            clean[Split.COMBINER] + 2 * learned[Split.COMBINER] + sizes[Split.CALIBRATE] + sizes[Split.TEST],
            clean[Split.HEADS] + 2 * learned[Split.HEADS] + fits * few,
        )


def verified(job: Job) -> int:
    """Return how many items of each attack are learned from, at most."""
    return job.recipe.items if job.craft_items is None else job.craft_items


def fitting_seconds(job: Job, classifier: Classifier, data: Dataset) -> float:
    """Estimate the seconds in which a guard is fitted, compiled and calibrated."""
    taps = [tap.name for tap in classifier.taps]
    programs = job.recipe.programs(taps)
    detectors = [detector for found in programs.values() for detector in found]
    size = FittingSize.of(job, data, len(candidates_of(job.recipe, taps)), len(detectors))
    compile_s = OPERATOR_EXPORT_S * len(classifier.graph.graph.nodes) * len(programs)
    gather_s = evidence_seconds(detectors, classifier, data)
    heads_s = heads_seconds(detectors, job, classifier, data)
    return gather_s * (size.gathered + size.read) + heads_s * size.fitted + compile_s


def evidence_seconds(detectors: list[Detector], classifier: Classifier, data: Dataset) -> float:
    """Measure the seconds an item in which these detectors' evidence is gathered in torch, in a batch."""
    gather = Gather(classifier, [need for detector in detectors for need in detector.needs])
    images = torch.from_numpy(data.images[:TIMED_ITEMS])
    with torch.no_grad():
        gather(images)
        return min(timed(gather, images) for _ in range(TIMED_TRIES)) / len(images)


def timed(gather: Gather, images: torch.Tensor) -> float:
    """Return the seconds in which the evidence of a batch is gathered."""
    began = time.perf_counter()
    gather(images)
    return time.perf_counter() - began


def heads_seconds(detectors: list[Detector], job: Job, classifier: Classifier, data: Dataset) -> float:
    """Measure the seconds an item in which these detectors' heads are fitted, evidence aside.

    Zero where there are too few items to fit any on.
    """
    clean = data.part(Split.HEADS).take(slice(TIMED_FIT_ITEMS))
    draw = np.random.default_rng(job.seed)
    noisy, attacked = (
        (clean.images[:] + draw.uniform(-0.05, 0.05, clean.images.shape)).clip(0, 1).astype(np.float32)
        for _ in range(2)
    )
    names = [repr(attack) for attack in job.recipe.attacks]
    by = tuple(names[place % len(names)] for place in range(len(attacked)))
    items, remembered = FittingItems(clean, noisy, Attacked(attacked, by)), EvidenceCache(classifier)
    try:
        fit_heads(detectors, items, remembered, seed=job.seed, report=lambda _: None)
        began = time.perf_counter()
        fit_heads(detectors, items, remembered, seed=job.seed, report=lambda _: None)
    except DataError:
        return 0.0
    return (time.perf_counter() - began) / (FITTED_PARTS * len(attacked))
