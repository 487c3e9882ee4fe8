"""Measures a bundle on attacked items: how many are caught, and what becomes of all that were tried.

Rule 1: no item that was fitted or calibrated on is ever counted.
Rule 2: an item is attacked only if the model's prediction verifiably changed; where an attack failed, the clean item
stands.
Rule 3: readings come from the bundle's own programs, through the one cascade.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from guard.calibration import Calibration, auroc
from guard.cascade import Cascade, Readings
from guard.fusion import Floats
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.evaluation.budget_curve import budget_curve
from guard.offline.findings.evaluation import AttackRow, Detection, LeftOutRow, Worst
from guard.offline.findings.intervals import Area, Caught, Promise, Rate, caught_at
from guard.offline.model.answering import Answering
from guard.offline.programs.opened_guard import Rates
from guard.offline.programs.read import read

TESTED_TAILS = 2  # of a detector's p-value: the smallest that n clean items allow is 2 / (n + 1)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcomes of one attack on every item tried [tried]: attacked, or clean where the attack failed."""

    hashes: NDArray[np.str_]
    wrong: NDArray[np.bool_]  # the model's answer
    p_value: Floats

    def handled(self, rate: float) -> NDArray[np.bool_]:
        """Return which items are rejected, or still classified right [tried]."""
        return ~self.wrong | (self.p_value <= rate)


@dataclass(frozen=True, eq=False)
class GuardReadings:
    """A guard at work, and its readings of all clean test items."""

    cascade: Cascade
    rates: Rates
    identity: str  # of what decides in it
    clean: Readings
    hashes: NDArray[np.str_]  # [item] of the clean test items

    @staticmethod
    def over(
        cascade: Cascade, rates: Rates, identity: str, held_out: Dataset, answering: Answering | None = None
    ) -> GuardReadings:
        """Read all clean test items by the guard's own programs; predictions are those of what is `answering`."""
        clean = read(cascade, held_out.images, answering=answering)
        return GuardReadings(cascade, rates, identity, clean, held_out.hashes)

    def fate(self, crafted: CraftedSet, readings: Readings) -> Outcomes:
        """Return the outcomes of a crafted set; `readings` are those of its attacked items."""
        places = {value: place for place, value in enumerate(self.hashes.tolist())}
        p_value = self.clean.p_value[[places[value] for value in crafted.tried_hashes.tolist()]]
        wrong = hits(crafted)
        p_value[wrong] = readings.p_value
        return Outcomes(crafted.tried_hashes, wrong, p_value)

    def detection(self, readings: Readings, fate: Outcomes, promises: Sequence[Promise]) -> Detection:
        return detect(self.cascade.calibration, readings, fate.p_value, fate.wrong, self.clean, promises)


@dataclass(frozen=True, eq=False)
class Other:
    """A guard that was fitted without one family of attacks, and its readings."""

    family: str
    fitted_on: tuple[str, ...]  # labels of the attacks that were left
    guard: GuardReadings
    served_detectors: bool = False  # and so chosen with the family

    def detection(self, crafted: CraftedSet, promises: Sequence[Promise]) -> Detection:
        readings = read(self.guard.cascade, crafted.attacked)
        return self.guard.detection(readings, self.guard.fate(crafted, readings), promises)

    def row(self, promises: Sequence[Promise]) -> LeftOutRow:
        alarms = caught_at(promises, self.guard.clean.p_value)
        return LeftOutRow(self.family, self.fitted_on, self.guard.identity, alarms, self.served_detectors)


@dataclass(frozen=True, eq=False)
class Examiner:
    """A maker of attack rows, from the served guard and from those fitted without a family."""

    guard: GuardReadings
    promises: tuple[Promise, ...]
    others: Mapping[str, Other]

    def examine(self, crafted: CraftedSet, *, label: str, setting: str) -> Examined:
        readings = read(self.guard.cascade, crafted.attacked)
        fate = self.guard.fate(crafted, readings)
        other = self.others.get(crafted.family)
        row = attack_row(
            self.guard,
            crafted,
            readings,
            fate,
            self.promises,
            label=label,
            setting=setting,
            left_out=None if other is None else other.detection(crafted, self.promises),
        )
        return Examined(row, crafted, readings, fate)


@dataclass(frozen=True, eq=False)
class Examined:
    """An attack's row, and what it was made from."""

    row: AttackRow
    crafted: CraftedSet
    readings: Readings  # of the attacked items
    fate: Outcomes


def hits(crafted: CraftedSet) -> NDArray[np.bool_]:
    """Return which of the items tried are the attacked ones [tried]; the attacked items follow in the same order."""
    found, place = np.zeros(crafted.tried, dtype=bool), 0
    for number, value in enumerate(crafted.tried_hashes.tolist()):
        if place < len(crafted) and value == crafted.hashes[place]:
            found[number], place = True, place + 1
    return found


def attack_row(
    guard: GuardReadings,
    crafted: CraftedSet,
    readings: Readings,
    fate: Outcomes,
    promises: Sequence[Promise],
    *,
    label: str,
    setting: str,
    left_out: Detection | None,
) -> AttackRow:
    """Return the row of one attack: of its verified items, whose readings these are, and of all that were tried."""
    rates, names = guard.rates, guard.cascade.calibration.detectors
    return AttackRow(
        attack=crafted.attack,
        label=label,
        family=crafted.family,
        norm=crafted.norm,
        budget=crafted.budget,
        setting=setting,
        tried=crafted.tried,
        success=Rate.of(fate.wrong),
        served=guard.detection(readings, fate, promises),
        left_out=left_out,
        rejected=Rate.of(readings.p_value <= rates.reject),
        flagged=Rate.of(readings.p_value <= rates.flag),
        robust_accuracy=Rate.of(fate.handled(rates.reject)),
        transfer=transfer_rate(crafted),
        curve=budget_curve(crafted, fate.wrong, readings.p_value, promises),
        detector_auroc=by_detector(names, guard.clean.scores, readings.scores),
        detector_surprise=by_detector(names, -guard.clean.detector_p, -readings.detector_p),
    )


def transfer_rate(crafted: CraftedSet) -> Rate | None:
    """Return the share of the items that mislead a student which fool its closed model too; None of an open model."""
    found = crafted.transfer
    return None if found is None else Rate.counted(found.transferred, found.misled)


def detect(
    calibration: Calibration,
    fooling: Readings,
    p_value: Floats,
    wrong: NDArray[np.bool_],
    clean: Readings,
    promises: Sequence[Promise],
) -> Detection:
    """Measure how one guard detects one attack: all together, and each detector alone.

    `fooling` are the readings of the items that fool the model; `p_value` and `wrong` run over all tried.
    """
    made = [promise for promise in promises if promise.reason is None]
    none: dict[float, Rate | None] = {promise.rate: None for promise in promises}
    return Detection(
        auroc=Area.between(clean.risk, fooling.risk),
        caught=caught_at(promises, fooling.p_value),
        handled=none | {p.rate: Rate.of(~wrong | (p_value <= p.rate)) for p in made},
        passing=none | {p.rate: Rate.of(~wrong[p_value > p.rate]) for p in made},
        alone={
            name: alone_at(promises, fooling.detector_p[:, column], calibration.items)
            for column, name in enumerate(calibration.detectors)
        },
    )


def alone_at(promises: Sequence[Promise], p_value: Floats, items: int) -> Caught:
    """Return one detector's share at each rate; None also where two tails cannot promise it with so few clean items."""
    caught = caught_at(promises, p_value)
    return {p.rate: caught[p.rate] if p.rate * (items + 1) >= TESTED_TAILS else None for p in promises}


def worst_of(fates: Mapping[str, Outcomes], promises: Sequence[Promise], reject_rate: float) -> Worst | None:
    """Return the worst case over the items that all the attacks were tried on; None where there is no such item.

    The keys of `fates` are labels.
    """
    if not fates:
        return None
    shared = reduce(set.intersection, (set(fate.hashes.tolist()) for fate in fates.values()))
    if not shared:
        return None
    chosen = [outcomes_of(fate, sorted(shared)) for fate in fates.values()]

    def always(rate: float) -> Rate:
        return Rate.of(np.logical_and.reduce([fate.handled(rate) for fate in chosen]))

    return Worst(
        attacks=tuple(fates),
        bare=Rate.of(np.logical_and.reduce([~fate.wrong for fate in chosen])),
        handled={p.rate: always(p.rate) if p.reason is None else None for p in promises},
        robust_accuracy=always(reject_rate),
    )


def outcomes_of(fate: Outcomes, hashes: Sequence[str]) -> Outcomes:
    """Return the outcomes of these items alone, in this order."""
    places = {value: place for place, value in enumerate(fate.hashes.tolist())}
    index = np.asarray([places[value] for value in hashes], dtype=np.int64)
    return Outcomes(fate.hashes[index], fate.wrong[index], fate.p_value[index])


def by_detector(names: Sequence[str], clean: NDArray[np.float64], attacked: NDArray[np.float64]) -> dict[str, float]:
    """Return the AUROC of each column alone; of scores, below 0.5 an attack makes inputs look calmer than clean."""
    if len(attacked) == 0:
        return {}
    return {name: auroc(clean[:, d], attacked[:, d]) for d, name in enumerate(names)}
