"""The panels of the dashboard as they were over a day, drawn from what Prometheus answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.deploy.monitoring import Panel, panels
from tests.deploy.prometheus_process import Series

mpl.use("Agg")
from matplotlib import pyplot

COLUMNS = 3
MAX_LINES = 12
UNITS = {"percentunit": "share", "s": "s", "bytes": "MB", "cps": "items/s", "reqps": "requests/s", "short": ""}

Span = tuple[str, float, float]  # a scene's name, begin and end


def draw(
    folder: Path, scenes: Sequence[Span], results: Mapping[str, Sequence[Sequence[Series]]], factor: float
) -> Path:
    """Draw every panel with the scenes behind it, and return the picture's path."""
    found = panels()
    titles = list(dict.fromkeys(panel.row for panel in found))
    by_row = {title: [panel for panel in found if panel.row == title] for title in titles}
    lines = [(title, row[start : start + COLUMNS]) for title, row in by_row.items() for start in range(0, len(row), 3)]
    figure = pyplot.figure(figsize=(24, 3.6 * len(lines)), layout="constrained")
    parts = figure.subfigures(len(lines), 1)
    shown: set[str] = set()
    for part, (title, row) in zip(parts, lines, strict=True):
        if title not in shown:
            part.suptitle(title, x=0.01, ha="left", fontsize=16, fontweight="bold")
            shown.add(title)
        for axes, panel in zip(part.subplots(1, COLUMNS), [*row, *[None] * (COLUMNS - len(row))], strict=True):
            if panel is None:
                axes.axis("off")
            else:
                draw_panel(axes, panel, results[panel.title], scenes, factor)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "day.png"
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return path


def draw_panel(
    axes: Any, panel: Panel, results: Sequence[Sequence[Series]], scenes: Sequence[Span], factor: float
) -> None:
    """Draw a panel's lines over the minutes of the day."""
    origin = scenes[0][1]
    scale = 1e-6 if panel.unit == "bytes" else 1.0
    drawn = 0
    for (_, legend), series in zip(panel.queries, results, strict=True):
        for one in series:
            if drawn == MAX_LINES:
                break
            minutes = [(at - origin) * factor / 60 for at in one.times]
            axes.plot(minutes, [value * scale for value in one.values], ".-", ms=1.5, lw=1.2, label=named(legend, one))
            drawn += 1
    for number, (name, begin, end) in enumerate(scenes):
        left, right = ((at - origin) * factor / 60 for at in (begin, end))
        if number % 2:
            axes.axvspan(left, right, color="0.94", zorder=0)
        middle = (left + right) / 2
        axes.text(
            middle,
            0.98,
            name,
            rotation=90,
            fontsize=6.5,
            color="0.45",
            ha="center",
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlim(0, (scenes[-1][2] - origin) * factor / 60)
    axes.set_ylabel(UNITS[panel.unit], fontsize=8)
    axes.set_xlabel("minutes of the day", fontsize=7)
    axes.tick_params(labelsize=8)
    if drawn:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def named(legend: str, series: Series) -> str:
    """The name of a line, as Grafana makes it from its legend."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: series.labels.get(match[1], ""), legend).strip() or "value"
