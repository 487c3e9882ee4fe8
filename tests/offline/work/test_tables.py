"""Tables are plain text that stands as it is: nothing in them is read as markup, and nothing is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from guard.offline.work.progress import Stages
from guard.offline.work.tables import (
    WIDTH_COLUMNS,
    counts,
    indented,
    marked,
    new_table,
    plain_lines,
    print_lines,
    shares,
)

TAGGED = "[bold]x[/red] :smile:"  # markup that is wrong, and the name of a picture


def test_a_table_stands_as_it_is() -> None:
    table = new_table("name", [counts("items"), shares("share")])
    table.add_row(TAGGED, "7", "90% [1, 99]")
    table.add_row("b", "1234", "–")
    assert plain_lines([table]) == [
        "name                   items  share",
        "─" * len("[bold]x[/red] :smile:      7  90% [1, 99]"),
        "[bold]x[/red] :smile:      7  90% [1, 99]",
        "b                       1234  –",
    ]


@pytest.mark.parametrize("name", ["x" * 200, "many short words " * 12])
def test_a_long_name_goes_on_below_and_no_figure_is_cut(name: str) -> None:
    figures = [f"{number}00% [100, 100]" for number in range(3)]
    table = new_table("name", map(shares, "abc"))
    table.add_row(marked("-", name), *figures)
    lines = plain_lines([table, marked("-", name), indented(name)])
    assert max(map(len, lines)) <= WIDTH_COLUMNS
    assert all(figure in lines[2] for figure in figures)
    assert "…" not in "".join(lines)
    assert lines[3].startswith("  "), "below the name, not below its mark"
    pieces = "".join(lines).replace(" ", "")
    assert pieces.count("x") == 3 * name.count("x")
    assert pieces.count("short") == 3 * name.count("short")


def test_lines_and_what_a_stage_says_are_printed_as_they_are() -> None:
    console = Console(width=20, file=io.StringIO())
    print_lines(console, [TAGGED + " " + "y" * 40])
    with Stages(console).stage("work") as stage:
        stage.say(TAGGED)
    assert isinstance(console.file, io.StringIO)
    first, second, *_ = console.file.getvalue().splitlines()
    assert first == TAGGED + " " + "y" * 40
    assert second == f"  {TAGGED}"
