"""Scores of a guard's detectors by heads that were fitted without one family of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guard.fusion import Floats
from guard.offline.data.attacked import Attacked

MIN_FAMILIES = 2  # of attacks: one is left out, another learned from
MIN_JUDGED_ITEMS = 20  # attacked items of a family in the combiner's split, for it to judge a guard that lacks it


@dataclass(frozen=True, eq=False)
class FamilyScores:
    """Scores of all candidates whose heads saw no item of one family, on the combiner's split."""

    family: str
    clean: Floats  # [item, candidate]
    noisy: Floats
    learned: Attacked[Floats]  # of the other families
    judged: Attacked[Floats]  # of this one

    def of(self, places: Sequence[int]) -> FamilyScores:
        """Return the scores of the candidates at these places, in this order."""
        columns = list(places)
        return FamilyScores(
            self.family,
            self.clean[:, columns],
            self.noisy[:, columns],
            self.learned.seen_as(self.learned.items[:, columns]),
            self.judged.seen_as(self.judged.items[:, columns]),
        )
