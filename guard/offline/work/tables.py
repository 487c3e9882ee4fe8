"""Tables of 80 columns for the terminal, each a column of names and then figures.

Rule 1: a name that is too long goes on below, and no figure is cut, however narrow the terminal.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

WIDTH_COLUMNS = 80
STAGE_WIDTH_COLUMNS = 78  # of what a stage says, which it indents


def new_table(names: str, columns: Iterable[Column], *, gap_columns: int = 2) -> Table:
    """Return a table without rows: a column of names under their heading, then columns of figures."""
    return Table(
        Column(names, overflow="fold"),
        *columns,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, gap_columns - 1),  # the box adds one
    )


def counts(heading: str) -> Column:
    """Return a column of figures that end below each other."""
    return Column(heading, justify="right", no_wrap=True)


def shares(heading: str) -> Column:
    """Return a column of figures that begin below each other, since an interval follows."""
    return Column(heading, no_wrap=True)


def indented(text: str, indent_columns: int = 2) -> Padding:
    return Padding(Text(text), (0, 0, 0, indent_columns))


def marked(mark: str, text: str) -> Table:
    """Return a text that goes on below itself, not below the mark before it."""
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
    grid.add_row(mark, text)
    return grid


def plain_lines(parts: Iterable[RenderableType], *, width_columns: int = WIDTH_COLUMNS) -> list[str]:
    """Return the lines that are drawn, as plain text: names are not read as markup, and no line ends in blanks."""
    console = Console(file=io.StringIO(), width=width_columns, color_system=None, markup=False, emoji=False)
    with console.capture() as drawn:
        for part in parts:
            console.print(part, highlight=False)
    return [line.rstrip() for line in drawn.get().splitlines()]


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are; a narrower terminal breaks them, and cuts none."""
    for line in lines:
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
