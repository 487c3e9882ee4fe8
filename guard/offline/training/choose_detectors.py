"""Choice of detectors: of those that cost at most so many forwards, the set that catches most of its worst attack.

Rule 1: an attack is judged by heads and by a fusion that saw no item of its family, with the share of the rate for
evidence that needs no attacks that a guard without that family would choose (`choose_share.py`).
Rule 2: the clean items that a threshold is taken from are no items that the fusion was fitted on.

How it works. Candidates are a recipe's detectors, those with several squeezers also with each of them alone. What two
candidates need together is paid once, so the sets worth a look are those of passes: of each set of passes all that can
be read from it is taken. A set is judged by one fusion a family and half: fitted on one half of the clean items and on
the attacks of all other families, it ranks the family's items among the clean ones of the other half. What it catches
of an attack is the mean over both halves and both promised rates; an attack of fewer than MIN_JUDGED_ITEMS has no say.
How much of the rate is kept for evidence that needs
no attacks, the other families choose.

Example: with `mahalanobis` (free), `saliency_classifier` (a gradient: 1 forward) and `feature_squeezing` (a row for
each of two squeezers) there are 2 x 4 sets of passes, from 1 to 4 forwards. Within 2 forwards are those without any
pass, with the gradient, with the one row or with the other. Say that they catch 20, 31, 35 and 24 % of the attack that
each catches least of: the third is taken. The frontier has the first and the third. "The next forward" is the best
of at most 3 forwards; if both rows catch 36 % there, one more forward buys one point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from guard.errors import ConfigError, DataError
from guard.offline.evidence.needs import Need
from guard.offline.training.choose_share import share_of_others, try_family
from guard.offline.training.family_scores import MIN_JUDGED_ITEMS, FamilyScores
from guard.offline.training.fit_fusion import usual_share

NEXT_FORWARDS = 1.0  # beyond the limit: what they would buy is said
TIED_SHARE = 0.005  # of an attack's items: sets whose worst attack lies no further apart are told apart by the mean
ROUNDING_FORWARDS = 1e-6  # of sums of costs


@dataclass(frozen=True)
class Option:
    """A candidate as the choice sees it: a detector's name, itself in words, and what each of its passes costs."""

    name: str
    text: str
    passes: Mapping[Need, float]  # forwards by need
    independent: bool = False  # of the attacked weights


@dataclass(frozen=True)
class Tried:
    """A set of candidates: its cost and what it catches of attacks whose family it was fitted without."""

    forwards: float
    detectors: tuple[str, ...]  # in words
    places: tuple[int, ...]  # among the candidates
    worst: float  # share caught of the attack that is caught least
    worst_attack: str
    mean: float  # over attacks

    @property
    def rank(self) -> tuple[float, float, float]:
        """What sets are compared by: the worst attack, then the mean, then the cost."""
        return round(self.worst / TIED_SHARE), self.mean, -self.forwards


@dataclass(frozen=True)
class DetectorChoice:
    """The set that was chosen within a limit of forwards, and what other limits would have given."""

    limit: float
    chosen: Tried
    frontier: tuple[Tried, ...]  # by rising cost: each catches more than every cheaper one
    next_forward: Tried | None  # the best of one forward more, where that catches more

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of the choice."""
        return asdict(self)


def choose(
    options: Sequence[Option], families: Sequence[FamilyScores], limit: float, rates: Sequence[float]
) -> DetectorChoice:
    """Choose the set within `limit` forwards on clean traffic. Raises ConfigError where no candidate is in reach.

    Raises DataError where there is no attacked item to judge by, or a score is not finite.
    """
    found = [
        judged(options, places, families, rates) for places in sets_within(options, limit + NEXT_FORWARDS) if places
    ]
    within = [one for one in found if one.forwards <= limit + ROUNDING_FORWARDS]
    if not within:
        cheapest = min(forwards_of([option]) for option in options)
        raise ConfigError(
            f"--cost {limit:g}: no detector of the recipe is within that many forwards; the cheapest costs "
            f"{cheapest:.3g}: give at least that"
        )
    chosen, best = max(within, key=lambda one: one.rank), max(found, key=lambda one: one.rank)
    frontier: list[Tried] = []
    for one in sorted(found, key=lambda one: (one.forwards, *(-value for value in one.rank))):
        if not frontier or one.rank[:2] > frontier[-1].rank[:2]:
            frontier.append(one)
    return DetectorChoice(limit, chosen, tuple(frontier), best if best.rank[:2] > chosen.rank[:2] else None)


def forwards_of(options: Iterable[Option]) -> float:
    """Return the forwards of the model that one program of these candidates costs at least."""
    passes: dict[Need, float] = {}
    for option in options:
        passes |= option.passes
    return 1 + sum(passes.values())


def sets_within(options: Sequence[Option], limit: float) -> Iterator[tuple[int, ...]]:
    """Yield the sets of candidates worth judging, by place: for each set of passes all that can be read from it.

    Of several candidates of one name that with the most passes is read.
    """
    every: dict[Need, float] = {}
    for option in options:
        every |= option.passes
    seen = set()
    for size in range(len(every) + 1):
        for passes in combinations(every, size):
            if 1 + sum(every[one] for one in passes) > limit + ROUNDING_FORWARDS:
                continue
            places = readable(options, frozenset(passes))
            if places not in seen:
                seen.add(places)
                yield places


def readable(options: Sequence[Option], passes: frozenset[Need]) -> tuple[int, ...]:
    """Return the candidates that need no other passes, the one with the most of each name."""
    found: dict[str, int] = {}
    for place, option in enumerate(options):
        if not passes.issuperset(option.passes):
            continue
        held = found.get(option.name)
        if held is None or len(option.passes) > len(options[held].passes):
            found[option.name] = place
    return tuple(sorted(found.values()))


def judged(
    options: Sequence[Option], places: tuple[int, ...], families: Sequence[FamilyScores], rates: Sequence[float]
) -> Tried:
    """Return what a set of candidates catches of each family's attacks without having seen the family."""
    independent = [options[place].independent for place in places]
    trials = [try_family(family.of(places), independent, rates) for family in families]
    usual = usual_share(independent)
    shares: dict[str, float] = {}
    for trial in trials:
        shares |= trial.by_attack[share_of_others(trials, trial, usual)]
    if not shares:
        raise DataError(
            f"no attack has {MIN_JUDGED_ITEMS} items in the combiner's split to choose detectors by; craft more of them"
        )
    worst = min(shares, key=lambda attack: (shares[attack], attack))
    chosen = [options[place] for place in places]
    return Tried(
        round(forwards_of(chosen), 4),
        tuple(option.text for option in chosen),
        places,
        shares[worst],
        worst,
        float(np.mean(list(shares.values()))),
    )
