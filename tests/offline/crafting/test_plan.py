"""The laws of a plan: floors whatever they take, caps, the budget, and what is said where something falls short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from guard.offline.crafting.plan import (
    MAX_FAMILY_ITEMS,
    MIN_FAMILY_ITEMS,
    REPORTED_ITEMS,
    TRIED_ITEMS_FACTOR,
    Budget,
    Plan,
    Row,
    Speed,
    more,
    read_plan,
    report_items,
    sizes,
    write_plan,
)
from guard.offline.work.directory import WorkDirectory

SPEEDS = (Speed("pgd", 0.02, 0.55), Speed("fgsm", 0.001, 0.7), Speed("cw", 0.5, 0.99))
PLENTY, STEP = 10_000, 64


def cost(rows: tuple[Row, ...]) -> float:
    return sum(row.tried * row.seconds for row in rows)


def plan(rows: tuple[Row, ...], minutes: float = 25.0, available: int = PLENTY) -> Plan:
    budget = Budget(minutes, spent=1, fitting=2, report=3, adaptive=8)
    return Plan("key", "torch", "torch", 2, available, budget, rows, 300)


@pytest.mark.parametrize("seconds", [-100.0, 0.0, 60.0, 200.0, 600.0, 1e9])
def test_every_family_lies_between_floor_and_cap(seconds: float) -> None:
    for row, speed in zip(sizes(SPEEDS, PLENTY, seconds, step=STEP), SPEEDS, strict=True):
        assert (row.attack, row.seconds, row.share) == (speed.attack, speed.seconds, speed.share)
        assert MIN_FAMILY_ITEMS * TRIED_ITEMS_FACTOR <= row.tried * row.share <= MAX_FAMILY_ITEMS + STEP
        assert row.tried % STEP == 0


def test_the_time_is_kept_wherever_the_floors_allow_it() -> None:
    floors = cost(sizes(SPEEDS, PLENTY, 0.0, step=STEP))
    caps = cost(sizes(SPEEDS, PLENTY, 1e9, step=STEP))
    assert floors < caps
    for seconds in (floors, floors + 1, 1.2 * floors, (floors + caps) / 2, caps, 2 * caps):
        spent = cost(sizes(SPEEDS, PLENTY, seconds, step=STEP))
        assert spent <= seconds
        # and what is left would not pay for another shard of each
        assert spent == caps or seconds - spent <= STEP * sum(speed.seconds for speed in SPEEDS)


def test_more_time_never_makes_a_family_smaller() -> None:
    last = [0, 0, 0]
    for seconds in range(0, 1000, 20):
        now = [row.tried for row in sizes(SPEEDS, PLENTY, seconds, step=STEP)]
        assert all(one >= other for one, other in zip(now, last, strict=True))
        last = now


def test_cheap_attacks_get_more_than_slow_ones() -> None:
    floors = cost(sizes(SPEEDS, PLENTY, 0.0, step=STEP))
    pgd, fgsm, cw = sizes(SPEEDS, PLENTY, floors + 60, step=STEP)
    assert pgd.expected >= MAX_FAMILY_ITEMS
    assert fgsm.expected >= MAX_FAMILY_ITEMS
    assert cw.expected < MIN_FAMILY_ITEMS * TRIED_ITEMS_FACTOR + 2 * STEP


def test_no_more_items_are_planned_than_there_are_and_that_is_said() -> None:
    rows = sizes(SPEEDS, 400, 1e9, step=STEP)
    assert [row.tried for row in rows] == [400, 400, 400]
    said = plan(rows, available=400).remarks()
    assert len(said) == 2
    assert "about 220 verified items are all that 400 clean ones yield; 300 are wanted" in said[0]


def test_an_attack_that_never_succeeds_is_tried_on_all_there_is() -> None:
    (row,) = sizes([Speed("weak", 0.1, 0.0)], 500, 0.0, step=STEP)
    assert row.tried == 500


def test_minima_that_do_not_fit_are_kept_and_it_is_said_what_they_cost() -> None:
    floors = sizes(SPEEDS, PLENTY, 0.0, step=STEP)
    short = plan(floors, minutes=15.0)
    assert short.overrun == pytest.approx(cost(floors) / 60 - 1.0)
    assert short.remarks() == ["300 verified items an attack do not fit into 15 minutes: this will take about 18"]
    assert plan(floors, minutes=60.0).remarks() == []
    assert plan(floors, minutes=60.0).overrun == 0


def test_the_table_fits_80_columns_and_names_every_number() -> None:
    slow = Speed("a_long_name_of_an_attack(with=settings, and=more)", 1234.5678, 0.5)
    found = plan(sizes((*SPEEDS, slow), PLENTY, 60.0, step=STEP), minutes=15)
    lines = found.lines()
    assert all(len(line) <= 78 for line in lines if "verified" not in line)  # a stage indents by two
    assert "plan for 15 minutes, 2 workers on torch" in lines[0]
    assert len(found.rows) == len(SPEEDS) + 1
    for row in found.rows:
        (line,) = [line for line in lines if line.startswith(row.attack[:20]) and "verified" not in line]
        assert line.split()[-4:] == [f"{row.seconds:.3f}", str(row.tried), str(row.expected), f"{row.minutes:.1f}"]
    assert any("and=more)" in line for line in lines), "a long name goes on below, and is not cut"


def test_too_few_that_came_are_topped_up_and_enough_are_left_alone() -> None:
    assert more(384, 300, step=STEP, available=PLENTY) == 384
    assert more(384, 299, step=STEP, available=PLENTY) == 448
    assert more(384, 100, step=STEP, available=PLENTY) >= 384 + 200 * 384 / 100
    assert more(384, 0, step=STEP, available=1000) == 1000
    assert more(1000, 0, step=STEP, available=1000) == 1000


def test_the_report_gets_what_its_rows_need() -> None:
    assert report_items(Speed("a", 1.0, 0.5), 0.8, PLENTY) == pytest.approx(
        REPORTED_ITEMS * TRIED_ITEMS_FACTOR / 0.4, abs=1
    )
    assert report_items(Speed("a", 1.0, 0.5), 0.8, 100) == 100
    assert report_items(Speed("a", 1.0, 0.0), 0.8, 100) == 100


def test_a_plan_is_found_again_only_for_what_it_was_made_for(tmp_path: Path) -> None:
    made = plan(sizes(SPEEDS, PLENTY, 60.0, step=STEP))
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
