"""Plan of `guard train --minutes M`: how many items each attack is tried on, and how long that takes.

Rule 1: no family is planned below MIN_FAMILY_ITEMS verified items unless the data hold no more; time never shrinks it
further.
Rule 2: a plan is made once. It lies in the work directory, and a run that is taken up again follows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_json, write_json
from guard.offline.work.tables import STAGE_WIDTH_COLUMNS, counts, new_table, plain_lines
from guard.offline.work.text import short

MIN_FAMILY_ITEMS, MAX_FAMILY_ITEMS = 300, 1200  # verified items of each family, to fit on
REPORTED_ITEMS = 200  # verified items of each attack in the report
TRIED_ITEMS_FACTOR = 1.1  # over what a success rate asks for, since a probe measured it on few items


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
    """Minutes in all, and those that other stages than crafting take."""

    minutes: float  # in all
    spent: float  # minutes until the plan was made: opening, compiling, probing
    fitting: float  # to fit, compile and calibrate
    report: float  # to attack the held-out items
    adaptive: float  # kept for the adaptive attack, which takes what is left
    second: float = 0.0  # kept for training a second network, which comes first

    @property
    def crafting(self) -> float:
        """Minutes that are left for crafting; below zero where none are left."""
        return self.minutes - self.second - self.spent - self.fitting - self.report - self.adaptive


@dataclass(frozen=True)
class Plan:
    """Sizes of the crafting stage, and the measurements that they follow from."""

    key: str  # cache key over all that the plan was made for
    engine: str  # torch | onnxruntime: what attacks run on
    reason: str
    workers: int  # at the time; another number changes times, not results
    available: int  # items that the model has right
    budget: Budget
    rows: tuple[Row, ...]
    attack_items: int  # held-out items; the report tries attacks that fool the model less often on more

    @property
    def minutes(self) -> float:
        """Minutes that crafting takes by this plan."""
        return sum(row.minutes for row in self.rows)

    @property
    def overrun(self) -> float:
        """Minutes beyond the budget, because no size may be reduced further."""
        return max(0.0, self.minutes - self.budget.crafting)

    def lines(self) -> list[str]:
        """Return the plan as a table that fits 80 columns, followed by its remarks."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        table = new_table("attack", map(counts, ("s/item", "tried", "expected", "minutes")))
        for row in self.rows:
            figures = (f"{row.seconds:.3f}", str(row.tried), str(row.expected), f"{row.minutes:.1f}")
            table.add_row(row.attack, *figures)
        costs, others = self.budget, new_table("beside that", [counts("minutes")])
        for what, minutes in (
            *([("second network, at most", costs.second)] if costs.second else []),
            ("speeds measured, model compiled", costs.spent),
            ("fit, compile, calibrate", costs.fitting),
            (f"attacks on {self.attack_items} held-out items and more, for the report", costs.report),
            ("adaptive attack: what is left, about", costs.adaptive + max(0.0, costs.crafting - self.minutes)),
        ):
            others.add_row(what, f"{minutes:.1f}")
        return [
            f"plan for {self.budget.minutes:g} minutes, {workers} on {self.reason}",
            *plain_lines([table, "", others], width_columns=STAGE_WIDTH_COLUMNS),
            *self.remarks(),
        ]

    def remarks(self) -> list[str]:
        """List what will fall short, before the work begins."""
        lines = [
            f"{short(row.attack, 36)}: about {row.expected} verified items are all that {self.available} clean ones "
            f"yield; {MIN_FAMILY_ITEMS} are wanted"
            for row in self.rows
            if row.expected < MIN_FAMILY_ITEMS
        ]
        if self.overrun > 0:
            total = self.budget.minutes + self.overrun
            lines.append(
                f"{MIN_FAMILY_ITEMS} verified items an attack do not fit into {self.budget.minutes:g} minutes: "
                f"this will take about {math.ceil(total)}"
            )
        return lines


def sizes(
    speeds: Sequence[Speed],
    available: int,
    seconds: float,
    *,
    step: int,
    floor: int = MIN_FAMILY_ITEMS,
    cap: int = MAX_FAMILY_ITEMS,
) -> tuple[Row, ...]:
    """Return how many items each attack is tried on, within `seconds` in all, in whole shards of `step` items.

    Every family gets as much time as the next, but none fewer than `floor` nor more than `cap` verified items. So what
    an expensive attack leaves goes to the cheap ones, and a floor is kept whatever it takes.
    """
    least = [whole(speed.tried_for(TRIED_ITEMS_FACTOR * floor), step, available) for speed in speeds]
    most = [max(low, whole(speed.tried_for(cap), step, available)) for low, speed in zip(least, speeds, strict=True)]

    def tried(each: float) -> list[int]:
        """Return the items of each attack if each gets this many seconds."""
        free = [int(each / max(speed.seconds, 1e-9)) for speed in speeds]
        return [
            high if count >= high else max(low, count // step * step)
            for low, count, high in zip(least, free, most, strict=True)
        ]

    def cost(counts: Sequence[int]) -> float:
        return sum(count * speed.seconds for count, speed in zip(counts, speeds, strict=True))

    low, high = 0.0, max((count * speed.seconds for count, speed in zip(most, speeds, strict=True)), default=0.0) + 1
    if cost(tried(high)) <= seconds:
        low = high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(tried(middle)) <= seconds else (low, middle)
    return tuple(Row(s.attack, s.seconds, s.share, count) for s, count in zip(speeds, tried(low), strict=True))


def whole(items: float, step: int, available: int) -> int:
    """Round up to whole shards, but to no more items than are available."""
    return min(available, math.ceil(items / step) * step)


def more(tried: int, verified: int, *, step: int, available: int, floor: int = MIN_FAMILY_ITEMS) -> int:
    """Return how many items to try when `tried` gave `verified`: more only if those are too few and more exist."""
    if verified >= floor or tried >= available:
        return tried
    rate = (verified + 1) / (tried + 2)
    return whole(tried + TRIED_ITEMS_FACTOR * (floor - verified) / rate, step, available)


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
