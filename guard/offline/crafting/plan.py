"""Plan of `guard train --minutes M`: how many items each attack is tried on, and what time is left for the report.

Rule 1: the guard is never cut to the time: its sizes follow from the recipe, so that it is the same wherever it is
trained. What does not fit into the minutes is taken from the report, and said before it begins.
Rule 2: a plan is made once. It lies in the work directory, and a run that is taken up again follows it.

Example. A recipe wants 1,000 verified items of PGD, which fools the model on 80 % of the items and takes 0.02 s each:
1,250 are planned, in whole shards of 64, so 1,280, and 26 s. If those give 990, more are tried; if they give 1,060, the
first shards that hold 1,000 are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_json, write_json
from guard.offline.work.tables import STAGE_WIDTH_COLUMNS, counts, new_table, plain_lines
from guard.offline.work.text import short

MIN_FAMILY_ITEMS = 300  # verified items of an attack: with fewer of them to fit on, detection has not levelled off
REPORTED_ITEMS, MIN_REPORTED_ITEMS = 200, 60  # verified items of each attack in the report: whole, and where time ends
TRIED_ITEMS_FACTOR = 1.1  # over what a success rate asks for, since a probe measured it on few items
REPORT_SHARE = 0.5  # of the minutes that the guard leaves: for attacks on held-out items, the rest for the adaptive one


@dataclass(frozen=True)
class Speed:
    """Speed and success rate of one attack, as a probe measured them."""

    attack: str
    seconds: float  # per item, with all workers running
    share: float  # of the items tried: how many fool the model

    def tried_for(self, verified: float) -> float:
        return verified / max(self.share, 1e-3)


@dataclass(frozen=True)
class Row:
    """Line of the plan: one attack, its speed, and how many items it is tried on."""

    attack: str
    seconds: float  # an item
    share: float
    tried: int  # how many of the first correctly classified items

    @property
    def expected(self) -> int:
        """Expected number of verified items."""
        return round(self.tried * self.share)

    @property
    def minutes(self) -> float:
        return self.tried * self.seconds / 60


@dataclass(frozen=True)
class Budget:
    """Minutes in all, those that the guard takes whatever they are, and those that a whole report would take."""

    minutes: float  # in all
    spent: float  # minutes until the plan was made: opening, compiling, probing
    fitting: float  # to fit, compile and calibrate
    report: float  # to attack the held-out items for a whole report
    adaptive: bool = True  # whether the report has an adaptive attack, which takes what is left

    def left(self, crafting: float) -> float:
        """Return the minutes that are left for the report, once crafting took so many; below zero where none are."""
        return self.minutes - self.spent - self.fitting - crafting


@dataclass(frozen=True)
class Plan:
    """Sizes of the crafting stage and of the report, and the measurements that they follow from."""

    key: str  # cache key over all that the plan was made for
    engine: str  # torch | onnxruntime: what attacks run on
    reason: str
    workers: int  # at the time; another number changes times, not results
    available: int  # items that the model has right
    wanted: int  # verified items of each attack, by the recipe
    budget: Budget
    rows: tuple[Row, ...]
    whole_items: int  # held-out items that a whole report tries each attack on; more of those that seldom succeed
    attack_items: int  # as many as there is time for

    @property
    def minutes(self) -> float:
        """Minutes that crafting takes by this plan."""
        return sum(row.minutes for row in self.rows)

    @property
    def report(self) -> float:
        """Minutes that the attacks on held-out items take by this plan."""
        return self.budget.report * self.attack_items / max(self.whole_items, 1)

    @property
    def left(self) -> float:
        """Minutes that are left for the adaptive attack; below zero where none are."""
        return self.budget.left(self.minutes) - self.report

    @property
    def cuts(self) -> tuple[str, ...]:
        """What is cut for want of time, in words."""
        if self.attack_items >= self.whole_items:
            return ()
        return (
            f"the report tries each attack on {self.attack_items} held-out items instead of {self.whole_items}, to end "
            f"within {self.budget.minutes:g} minutes",
        )

    def lines(self) -> list[str]:
        """Return the plan as a table that fits 80 columns, followed by its remarks."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        table = new_table("attack", map(counts, ("s/item", "tried", "expected", "minutes")))
        for row in self.rows:
            figures = (f"{row.seconds:.3f}", str(row.tried), str(row.expected), f"{row.minutes:.1f}")
            table.add_row(row.attack, *figures)
        costs, others = self.budget, new_table("beside that", [counts("minutes")])
        for what, minutes in (
            ("speeds measured, model compiled", costs.spent),
            ("fit, compile, calibrate", costs.fitting),
            (f"attacks on {self.attack_items} held-out items and more, for the report", self.report),
            *([("adaptive attack: what is left, about", max(0.0, self.left))] if costs.adaptive else []),
        ):
            others.add_row(what, f"{minutes:.1f}")
        return [
            f"plan for {self.wanted:,} verified items an attack, {workers} on {self.reason}",
            *plain_lines([table, "", others], width_columns=STAGE_WIDTH_COLUMNS),
            *self.remarks(),
        ]

    def remarks(self) -> list[str]:
        """List what will fall short, before the work begins."""
        lines = [
            f"{short(row.attack, 36)}: about {row.expected} verified items are all that {self.available} clean ones "
            f"yield; {self.wanted:,} are wanted"
            for row in self.rows
            if row.tried >= self.available and row.expected < self.wanted
        ]
        if self.left < 0:
            total = self.budget.minutes - self.left
            lines.append(
                f"the guard is not cut to the time: this will take about {math.ceil(total)} minutes, "
                f"{self.budget.minutes:g} were given"
            )
        return [*lines, *self.cuts]


def sizes(speeds: Sequence[Speed], available: int, wanted: int, *, step: int) -> tuple[Row, ...]:
    """Return how many items each attack is tried on for so many verified ones, in whole shards of `step` items."""
    return tuple(
        Row(speed.attack, speed.seconds, speed.share, whole(speed.tried_for(wanted), step, available))
        for speed in speeds
    )


def report_size(budget: Budget, crafting: float, whole_items: int) -> int:
    """Return how many held-out items each attack of the report is tried on, where a whole report has `whole_items`.

    Never fewer than MIN_REPORTED_ITEMS, however little time `crafting` minutes leave.
    """
    share = REPORT_SHARE if budget.adaptive else 1.0
    affordable = whole_items * share * max(0.0, budget.left(crafting)) / max(budget.report, 1e-9)
    return min(whole_items, max(MIN_REPORTED_ITEMS, math.floor(affordable)))


def whole(items: float, step: int, available: int) -> int:
    """Round up to whole shards, but to no more items than are available."""
    return min(available, math.ceil(items / step) * step)


def more(tried: int, verified: int, *, step: int, available: int, wanted: int) -> int:
    """Return how many items to try when `tried` gave `verified`: more only if those are too few and more exist."""
    if verified >= wanted or tried >= available:
        return tried
    rate = (verified + 1) / (tried + 2)
    return whole(tried + TRIED_ITEMS_FACTOR * (wanted - verified) / rate, step, available)


def report_items(speed: Speed, accuracy: float, held_out: int, *, wanted: int = REPORTED_ITEMS) -> int:
    """Return how many held-out items, correctly classified or not, an attack needs for `wanted` verified ones."""
    return min(held_out, math.ceil(speed.tried_for(TRIED_ITEMS_FACTOR * wanted) / max(accuracy, 1e-3)))


def read_plan(work: WorkDirectory, key: str | None = None) -> Plan | None:
    """Read the plan of this work directory; None where there is none, or none for `key`."""
    content = read_json(work.plan)
    try:
        rows = tuple(Row(**row) for row in content.pop("rows"))
        plan = Plan(**{**content, "budget": Budget(**content["budget"]), "rows": rows})
    except (AttributeError, KeyError, TypeError):
        return None
    return plan if key in (None, plan.key) else None


def write_plan(work: WorkDirectory, plan: Plan) -> None:
    """Write the plan into the work directory."""
    write_json(work.plan, asdict(plan), indent=2)
