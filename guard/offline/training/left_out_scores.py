"""Scores by heads that were fitted without one family of attacks, inside training: what the choice of a share reads.

Rule 1: no head sees an item of the family that it is fitted without, nor noise made from one.
Rule 2: heads are fitted on the heads split, and score the combiner's.

They are smaller fits than the guard's own: at most MAX_FITTED_ITEMS of each kind, so that all families together take
about as long as one fit of the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from guard.fusion import Floats
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.grid import Images
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector, Head
from guard.offline.evidence.cache import Gathered
from guard.offline.evidence.gather import distinct
from guard.offline.job.job import Job
from guard.offline.training.build import Prepared
from guard.offline.training.calibrator import pool
from guard.offline.training.choose_share import Scores
from guard.offline.training.fit_heads import FittingItems, fit_heads

MAX_FITTED_ITEMS = 600  # of each kind, clean, noisy and attacked, that a family's heads are fitted on
MAX_SCORED_ITEMS = 1000  # of each kind that they score
MIN_LEARNED_ITEMS = 20  # attacked items of the other families; with fewer no head can learn, and the family stays
MIN_JUDGED_ITEMS = 20  # attacked items of the family itself, in the combiner's split


def left_out_scores(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    gathered: Gathered,
    note: Callable[[str], None],
) -> dict[str, Scores]:
    """Return scores by the family that their heads do without; none where fewer than two families can be left out.

    `gathered` remembers evidence, that of the guard's own fit included. Raises DataError.
    """
    detectors = [detector for ds in programs.values() for detector in ds]
    grid = prepared.classifier.spec.input.grid
    scored = items_of(prepared, prepared.crafted, Split.COMBINER, grid).some(MAX_SCORED_ITEMS, job.seed)
    found = {}
    for family in leaving(prepared):
        note(f"without {family}")
        kept = [one for one in prepared.crafted if one.family != family]
        items = items_of(prepared, kept, Split.HEADS, grid).some(MAX_FITTED_ITEMS, job.seed)
        heads = fit_heads(detectors, items, gathered, seed=job.seed, report=lambda _: None)
        own = [heads[detector.name] for detector in detectors]
        bad = scored.attacked.seen_as(scores_of(own, scored.attacked.items, gathered))
        clean, noisy = (scores_of(own, images, gathered) for images in (scored.clean.images[:], scored.noisy))
        found[family] = Scores(clean, noisy, bad)
    return found


def leaving(prepared: Prepared) -> list[str]:
    """Return the families that can be left out: enough of their items judge, and enough of the others' are learned."""

    def count(split: Split, *, of: str, others: bool) -> int:
        kept = [one for one in prepared.crafted if (one.family != of) == others]
        return sum(len(one.select(prepared.data.splits, split)) for one in kept)

    families = dict.fromkeys(one.family for one in prepared.crafted)
    found = [
        family
        for family in families
        if count(Split.COMBINER, of=family, others=False) >= MIN_JUDGED_ITEMS
        and min(count(split, of=family, others=True) for split in (Split.HEADS, Split.COMBINER)) >= MIN_LEARNED_ITEMS
    ]
    return found if len(found) > 1 else []


def items_of(prepared: Prepared, crafted: Sequence[CraftedSet], split: Split, grid: int | None) -> FittingItems:
    """Return the clean, noisy and attacked items of one split."""
    attacked, noisy = pool(crafted, prepared.data, split, grid)
    return FittingItems(prepared.data.part(split), noisy, attacked)


def scores_of(heads: Sequence[Head], images: Images, gathered: Gathered) -> Floats:
    """Return the scores [item, detector] of unit-space images, in torch."""
    evidence = gathered(distinct(need for head in heads for need in head.detector.needs), images)
    with torch.no_grad():
        return np.asarray(torch.stack([head(evidence) for head in heads], dim=1).double().numpy(), dtype=np.float64)
