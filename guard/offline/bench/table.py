"""The result of `guard bench` as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from guard.offline.bench.costs import MODEL, READ, BatchCost, BenchResult, ProgramCost
from guard.offline.bench.profile import Profile
from guard.offline.bench.stopwatch import Spread
from guard.offline.work.tables import counts, new_table, plain_lines

MIN_LISTED_SHARE = 0.01  # of a profile's time, for an operator to have a line of its own


def lines_of(result: BenchResult) -> list[str]:
    """Return the tables of costs and aims and, where there are any, of profiles, as lines."""
    return plain_lines(parts(result))


def parts(result: BenchResult) -> Iterator[RenderableType]:
    threads = {None: "a thread for each CPU", 1: "1 thread"}.get(result.threads, f"{result.threads} threads")
    yield f"{result.model} on {result.device}, {threads}. All take turns: medians of rounds, [quartiles]."
    yield (
        "1 forward: the bare model. µs: a call of the whole batch. A detector's line: what its program would save "
        "without it."
    )
    for batch in result.batches:
        yield f"\nbatch {batch.items} ({batch.rounds} rounds)"
        yield batch_table(batch)
        yield "\n".join(["", *notes(batch, result)])
    for found in result.profiles:
        yield f"\nwhere {found.program} spends a call of {found.items} (ONNX Runtime's profile)"
        yield profile_table(found)
    yield verdict(result)


def batch_table(batch: BatchCost) -> Table:
    table = figures("forwards", "µs", "items/s", "over floor")

    def row(name: str, forwards: str, microseconds: Spread, over: str = "", *, last: bool = False) -> None:
        speed = number(batch.per_second(microseconds))
        table.add_row(name, forwards, number(microseconds.median), speed, over, end_section=last)

    row(MODEL, "1", batch.model)
    for cost in batch.programs:
        over = f"{cost.over_floor.median:.2f} × {cost.floor:.3g}" if cost.floor > 1 else ""
        row(cost.name, ranged(cost.forwards), cost.microseconds, over)
    row("cascade, clean traffic", ranged(batch.cascade_forwards), batch.cascade_microseconds)
    row(READ, ranged(batch.read_forwards), batch.read_microseconds, last=True)
    for found in batch.detectors:
        mark = "≥ " if found.at_least else ""
        table.add_row(
            f"  {found.name}",
            f"{mark}{ranged(found.forwards, sign='+')}",
            f"{mark}{number(found.microseconds.median, sign='+')}",
        )
    return table


def notes(batch: BatchCost, result: BenchResult) -> Iterator[str]:
    for cost in batch.programs:
        yield aim_line(cost)
    if result.limit is not None:
        found = "met" if result.within(batch) else "MISSED"
        yield f"clean traffic: aim ≤ {result.limit:g} forwards: {found} ({batch.cascade_forwards.median:.2f})"
    for share, cost in zip(result.reached[1:], batch.programs[1:], strict=True):
        yield f"{share:.1%} of clean items reach {cost.name}"
    if batch.busy:
        yield (
            f"the machine was busy (quartiles of a forward lie {batch.model.relative:.0%} of its median apart):\n"
            "trust the ratios, not the microseconds"
        )


def aim_line(cost: ProgramCost) -> str:
    found = f"{cost.forwards.median:.2f} forwards" if cost.floor == 1 else f"{cost.over_floor.median:.2f} × floor"
    return (
        f"{cost.name}: aim {cost.aim}: {'met' if cost.met else 'MISSED'} ({found}, {number(cost.added, sign='+')} µs)"
    )


def profile_table(found: Profile) -> Table:
    """Return a table of time by part, and within each part by operator type."""
    table = figures("count", "µs", "share", "forwards")
    total, by_part = found.microseconds, found.by_part()
    forward = by_part.get("forward", 0.0)
    for part, spent in by_part.items():
        unit = f"{spent / forward:.2f}" if forward else ""
        table.add_row(part, "", number(spent), f"{spent / total:.0%}", unit)
        for one in found.operators:
            if one.part == part and one.microseconds >= MIN_LISTED_SHARE * total:
                table.add_row(
                    f"  {one.kind}", str(one.count), number(one.microseconds), f"{one.microseconds / total:.0%}"
                )
    return table


def figures(*headings: str) -> Table:
    return new_table("", map(counts, headings))


def verdict(result: BenchResult) -> str:
    missed = [f"{cost.name} at batch {items}" for items, cost in result.missed]
    missed += [f"clean traffic at batch {batch.items}" for batch in result.batches if not result.within(batch)]
    return "\naims missed: " + ", ".join(missed) if missed else "\nevery aim is met"


def ranged(spread: Spread, *, sign: str = "") -> str:
    digits = 2 if abs(spread.median) < 10 else 1
    return f"{spread.median:{sign}.{digits}f} [{spread.low:.{digits}f}–{spread.high:.{digits}f}]"


def number(value: float, *, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.1f}"
