"""Chooses the share of the rate for evidence that needs no attacks, by families of attacks that were left out.

Rule 1: a family judges only heads and fusions that were fitted on none of its items, at thresholds of clean items that
the fusion was not fitted on.
Rule 2: a share is worth what it catches of the family that it catches least of.

How it works. Each family of the crafted attacks is left out in turn. Heads are fitted without it, as
`left_out_scores.py` does, and the fusion on the scores that they give to the other families and to half of the clean
items. What is caught of the family is counted at thresholds that the other half sets, at several rates; then the halves
change places.
Of all shares that cost the seen families little, the one with the best worst family is taken. A guard that is itself
made without a family chooses among the families that it has: the choice never sees an item of the one it lacks. Where
detectors are chosen, too (`choose_detectors.py`), each family is judged at the share that the others choose.

Example. With the usual share, families A, B and C are caught on 80, 40 and 60 % left out, and on 90 % where they are
seen; with a larger share on 70, 50 and 55 %, and 88 %. The larger one is taken: 50 % is more than 40 %, and 2 points of
what is seen are within MAX_SEEN_LOSS_SHARE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.fusion import Floats, Fusion
from guard.offline.data.attacked import Attacked
from guard.offline.training.family_scores import MIN_FAMILIES, MIN_JUDGED_ITEMS, FamilyScores
from guard.offline.training.fit_fusion import add_surprise, fit_weights, usual_share

TRIED_RATE_SHARES = (0.1, 0.3, 0.5, 0.7)
MAX_SEEN_LOSS_SHARE = 0.03  # of the seen families' items: how many fewer a chosen share may catch than the usual one
JUDGED_RATES = (0.01, 0.02, 0.05, 0.1)  # promised rates at which what is caught is counted
CLEAN_PARTS = 2  # of the clean items: the fusion is fitted on all but one, which sets the thresholds


@dataclass(frozen=True)
class KeptShare:
    """The share of the rate that was chosen, and what it catches of each family left out, beside the usual share.

    What is caught is a share of a family's items, averaged over its attacks and JUDGED_RATES. Without two families
    there is no choice: the share is the usual one, and nothing was counted.
    """

    rate_share: float
    caught: Mapping[str, float] = field(default_factory=dict)
    usual_caught: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the choice."""
        return {
            "alone_rate_share": self.rate_share,
            "left_out": {family: round(share, 3) for family, share in self.caught.items()},
            "left_out_usual": {family: round(share, 3) for family, share in self.usual_caught.items()},
        }

    def __str__(self) -> str:
        if not self.caught:
            return f"{self.rate_share:.0%} of the rate for evidence that needs no attacks, the usual share"
        worst = min(self.caught, key=lambda family: self.caught[family])
        return (
            f"{self.rate_share:.0%} of the rate for evidence that needs no attacks, chosen by families left out: "
            f"{self.caught[worst]:.0%} caught of the worst, {worst}; {min(self.usual_caught.values()):.0%} with the "
            "usual share"
        )


@dataclass(frozen=True)
class FamilyTrial:
    """What each share of the rate catches of one family, by fusions that were fitted on none of its items."""

    family: str
    items: int  # attacked ones of the family
    caught: Mapping[float, float]  # of the family, by share of the rate; averaged over attacks and JUDGED_RATES
    seen: Mapping[float, float]  # of the other families, likewise
    # Of each attack of the family that has MIN_JUDGED_ITEMS, averaged over the promised rates; where none has as many,
    # of all together under the family's name
    by_attack: Mapping[float, Mapping[str, float]]


def choose_share(left_out: Sequence[FamilyScores], independent: Sequence[bool] = ()) -> KeptShare:
    """Choose the share that serves the worst left-out family best; `independent` as in `fit_fusion`.

    Raises DataError, as a fit does.
    """
    usual = usual_share(independent)
    if not left_out:
        return KeptShare(usual)
    trials = [try_family(one, independent) for one in left_out]
    best = best_share(trials, usual)
    return KeptShare(best, *({one.family: one.caught[share] for one in trials} for share in (best, usual)))


def share_of_others(trials: Sequence[FamilyTrial], judged: FamilyTrial | None, usual: float) -> float:
    """Return the share that a guard without the family that is judged would choose: by the others.

    The usual one where these are fewer than two; None: no family is left out.
    """
    others = [one for one in trials if one is not judged and one.items >= MIN_JUDGED_ITEMS]
    return best_share(others, usual) if len(others) >= MIN_FAMILIES else usual


def best_share(trials: Sequence[FamilyTrial], usual: float) -> float:
    """Return the share whose worst family is caught best, of those that cost the seen ones little."""
    seen = {share: float(np.mean([one.seen[share] for one in trials])) for share in trials[0].seen}
    allowed = [share for share in seen if seen[share] >= seen[usual] - MAX_SEEN_LOSS_SHARE]
    return max([usual, *allowed], key=lambda share: min(one.caught[share] for one in trials))  # of equal ones the usual


def try_family(one: FamilyScores, independent: Sequence[bool], promised: Sequence[float] = ()) -> FamilyTrial:
    """Try each share on one family, at the promised rates of each attack as well. Raises DataError, as a fit does."""
    tried = sorted({usual_share(independent), *TRIED_RATE_SHARES})
    caught, seen = dict.fromkeys(tried, 0.0), dict.fromkeys(tried, 0.0)
    above = {share: np.zeros(len(one.judged)) for share in tried}
    for place in range(CLEAN_PARTS):
        held = np.arange(len(one.clean)) % CLEAN_PARTS == place
        clean = one.clean[~held]
        weighed = fit_weights(clean, one.noisy, one.learned)
        for share in tried:
            fusion = add_surprise(weighed, clean, one.noisy, independent, share)
            caught[share] += share_caught(fusion, one.clean[held], one.judged) / CLEAN_PARTS
            seen[share] += share_caught(fusion, one.clean[held], one.learned) / CLEAN_PARTS
            if promised:
                above[share] += above_thresholds(fusion, one.clean[held], one.judged.items, promised) / CLEAN_PARTS
    judging = judging_attacks(one)
    by_attack = {
        share: {name: float(of_items[own].mean()) for name, own in judging.items()} for share, of_items in above.items()
    }
    return FamilyTrial(one.family, len(one.judged), caught, seen, by_attack)


def judging_attacks(one: FamilyScores) -> dict[str, NDArray[np.bool_]]:
    """Return the attacks of a family that have items enough to judge by, each with a mask [item] of its own."""
    names, counts = np.unique(one.judged.names, return_counts=True)
    enough = [str(name) for name, count in zip(names, counts, strict=True) if count >= MIN_JUDGED_ITEMS]
    if not enough and len(one.judged) >= MIN_JUDGED_ITEMS:
        return {one.family: np.ones(len(one.judged), dtype=bool)}
    return {name: one.judged.names == name for name in enough}


def share_caught(fusion: Fusion, clean: Floats, judged: Attacked[Floats]) -> float:
    """Return the share of attacked items above thresholds of clean ones, averaged over JUDGED_RATES and attacks."""
    return float(above_thresholds(fusion, clean, judged.items, JUDGED_RATES) @ judged.shares())


def above_thresholds(fusion: Fusion, clean: Floats, items: Floats, rates: Sequence[float]) -> Floats:
    """Return at what share of the rates an item [item] lies above the threshold that clean scores set."""
    thresholds = np.quantile(fusion.risk(clean), 1 - np.asarray(rates), method="higher")
    above: Floats = (fusion.risk(items)[:, None] > thresholds).mean(axis=1)
    return above
