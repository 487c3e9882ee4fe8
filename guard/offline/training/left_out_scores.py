"""Scores of a guard's detectors where each family of attacks is left out: what the share of the rate is chosen by.

They come from smaller fits than the guard's own, so that all families together take about as long as one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from guard.offline.detectors.detector import Detector
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.job.job import Job
from guard.offline.training.build import Prepared
from guard.offline.training.candidates import Candidate, scores_without
from guard.offline.training.families import leaving
from guard.offline.training.family_scores import FamilyScores

MAX_FITTED_ITEMS = 600  # of each kind, clean, noisy and attacked, that a family's heads are fitted on


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
