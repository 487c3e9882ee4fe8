"""Scores of a guard's detectors where each family of attacks is left out: what the share of the rate is chosen by.

They come from smaller fits than the guard's own, so that all families together take about as long as one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.job.job import Job
from guard.offline.training.build import Prepared
from guard.offline.training.candidates import MIN_FAMILIES, Candidate, families_of, scores_without
from guard.offline.training.choose_detectors import FamilyScores

MAX_FITTED_ITEMS = 600  # of each kind, clean, noisy and attacked, that a family's heads are fitted on
MIN_LEARNED_ITEMS = 20  # attacked items of the other families; with fewer no head can learn, and the family stays
MIN_JUDGED_ITEMS = 20  # attacked items of the family itself, in the combiner's split


def left_out_scores(
    job: Job,
    prepared: Prepared,
    programs: Mapping[str, Sequence[Detector]],
    remembered: EvidenceCache,
    note: Callable[[str], None],
) -> list[FamilyScores]:
    """Return scores by heads that do without each family; none where fewer than two families can be left out.

    Raises DataError.
    """
    candidates = [Candidate({}, detector) for detectors in programs.values() for detector in detectors]
    return [
        scores_without(family, job, prepared, candidates, remembered, note, MAX_FITTED_ITEMS)[0]
        for family in leaving(prepared)
    ]


def leaving(prepared: Prepared) -> list[str]:
    """Return the families that can be left out: enough of their items judge, and enough of the others' are learned."""
    found = [family for family in families_of(prepared) if can_leave(prepared, family)]
    return found if len(found) >= MIN_FAMILIES else []


def can_leave(prepared: Prepared, family: str) -> bool:
    """Return whether a family can be left out."""

    def count(split: Split, *, own: bool) -> int:
        kept = [one for one in prepared.crafted if (str(one.family) == family) == own]
        return sum(len(one.select(prepared.data.splits, split)) for one in kept)

    learned = min(count(split, own=False) for split in (Split.HEADS, Split.COMBINER))
    return count(Split.COMBINER, own=True) >= MIN_JUDGED_ITEMS and learned >= MIN_LEARNED_ITEMS
