"""The laws of a plan: sizes that follow from the recipe, a report that takes what is left, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guard.offline.crafting.plan import (
    MIN_REPORTED_ITEMS,
    REPORTED_ITEMS,
    TRIED_ITEMS_FACTOR,
    Budget,
    Plan,
    Row,
    Speed,
    more,
    read_plan,
    report_items,
    report_size,
    sizes,
    write_plan,
)
from guard.offline.work.directory import WorkDirectory

SPEEDS = (Speed("pgd", 0.02, 0.55), Speed("fgsm", 0.001, 0.7), Speed("cw", 0.5, 0.99))
PLENTY, STEP, WANTED, WHOLE_ITEMS = 10_000, 64, 1000, 300


def plan(rows: tuple[Row, ...], minutes: float = 60.0, available: int = PLENTY, *, report: float = 3) -> Plan:
    budget = Budget(minutes, spent=1, fitting=2, report=report)
    crafting = sum(row.minutes for row in rows)
    items = report_size(budget, crafting, WHOLE_ITEMS)
    return Plan("key", "torch", "torch", 2, available, WANTED, budget, rows, WHOLE_ITEMS, items)


def test_sizes_follow_from_the_items_wanted_and_from_nothing_that_is_timed() -> None:
    rows = sizes(SPEEDS, PLENTY, WANTED, step=STEP)
    slower = sizes([replace(speed, seconds=9 * speed.seconds) for speed in SPEEDS], PLENTY, WANTED, step=STEP)
    assert [row.tried for row in rows] == [row.tried for row in slower]
    for row, speed in zip(rows, SPEEDS, strict=True):
        assert (row.attack, row.seconds, row.share) == (speed.attack, speed.seconds, speed.share)
        assert WANTED <= row.tried * row.share < WANTED + STEP
        assert row.tried % STEP == 0


def test_no_more_items_are_planned_than_there_are_and_that_is_said() -> None:
    rows = sizes(SPEEDS, 400, WANTED, step=STEP)
    assert [row.tried for row in rows] == [400, 400, 400]
    said = plan(rows, available=400).remarks()
    assert len(said) == 3
    assert "about 220 verified items are all that 400 clean ones yield; 1,000 are wanted" in said[0]


def test_an_attack_that_never_succeeds_is_tried_on_all_there_is() -> None:
    (row,) = sizes([Speed("weak", 0.1, 0.0)], 500, WANTED, step=STEP)
    assert row.tried == 500


def test_time_is_taken_from_the_report_alone_and_that_is_said() -> None:
    rows = sizes(SPEEDS, PLENTY, WANTED, step=STEP)
    guard = 3 + sum(row.minutes for row in rows)
    whole, tight, none = (plan(rows, minutes=guard + left) for left in (6.01, 3.0, -2.5))
    assert whole.attack_items == WHOLE_ITEMS
    assert whole.remarks() == []
    assert tight.attack_items == WHOLE_ITEMS / 2  # of three minutes the adaptive attack has the other half
    assert tight.report == tight.left == pytest.approx(1.5)
    assert tight.remarks() == [
        f"the report tries each attack on 150 held-out items instead of 300, to end within {guard + 3:g} minutes"
    ]
    assert none.attack_items == MIN_REPORTED_ITEMS
    assert none.rows == whole.rows
    first, second = none.remarks()
    assert first.startswith("the guard is not cut to the time: this will take about ")
    assert f"{guard - 2.5:g} were given" in first
    assert second == none.cuts[0]


def test_without_an_adaptive_attack_the_report_has_all_that_is_left() -> None:
    budget = Budget(10.0, spent=1, fitting=2, report=4, adaptive=False)
    assert report_size(budget, 3.0, WHOLE_ITEMS) == WHOLE_ITEMS
    assert report_size(replace(budget, adaptive=True), 3.0, WHOLE_ITEMS) == WHOLE_ITEMS / 2


def test_the_table_fits_80_columns_and_names_every_number() -> None:
    slow = Speed("a_long_name_of_an_attack(with=settings, and=more)", 1234.5678, 0.5)
    found = plan(sizes((*SPEEDS, slow), PLENTY, WANTED, step=STEP))
    lines = found.lines()
    table = [line for line in lines if not line.startswith("the ")]
    assert all(len(line) <= 78 for line in table)  # a stage indents by two
    assert lines[0] == "plan for 1,000 verified items an attack, 2 workers on torch"
    assert len(found.rows) == len(SPEEDS) + 1
    for row in found.rows:
        (line,) = [line for line in table if line.startswith(row.attack[:20])]
        assert line.split()[-4:] == [f"{row.seconds:.3f}", str(row.tried), str(row.expected), f"{row.minutes:.1f}"]
    assert any("and=more)" in line for line in lines), "a long name goes on below, and is not cut"


def test_too_few_that_came_are_topped_up_and_enough_are_left_alone() -> None:
    assert more(384, 300, step=STEP, available=PLENTY, wanted=300) == 384
    assert more(384, 299, step=STEP, available=PLENTY, wanted=300) == 448
    assert more(384, 100, step=STEP, available=PLENTY, wanted=300) >= 384 + 200 * 384 / 100
    assert more(384, 0, step=STEP, available=1000, wanted=300) == 1000
    assert more(1000, 0, step=STEP, available=1000, wanted=300) == 1000


def test_the_report_gets_what_its_rows_need() -> None:
    assert report_items(Speed("a", 1.0, 0.5), 0.8, PLENTY) == pytest.approx(
        REPORTED_ITEMS * TRIED_ITEMS_FACTOR / 0.4, abs=1
    )
    assert report_items(Speed("a", 1.0, 0.5), 0.8, 100) == 100
    assert report_items(Speed("a", 1.0, 0.0), 0.8, 100) == 100


def test_a_plan_is_found_again_only_for_what_it_was_made_for(tmp_path: Path) -> None:
    made = plan(sizes(SPEEDS, PLENTY, WANTED, step=STEP))
    work = WorkDirectory(tmp_path / "work")
    assert read_plan(work) is None
    write_plan(work, made)
    assert read_plan(work) == read_plan(work, "key") == made
    assert read_plan(work, "other") is None
    write_plan(work, replace(made, key="other"))
    assert read_plan(work, "key") is None
    for damaged in ('{"rows": []}', "[]", "{", ""):
        work.plan.write_text(damaged)
        assert read_plan(work) is None
    assert [path.name for path in work.path.iterdir()] == ["plan.json"]
