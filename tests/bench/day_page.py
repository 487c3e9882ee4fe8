"""The panels of the dashboard as they were over a day, drawn from what Prometheus answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.deploy.monitoring import Panel, panels
from tests.deploy.prometheus_process import Series

mpl.use("Agg")
from matplotlib import pyplot

COLUMNS = 3
WIDE = "state-timeline"  # a panel that has a line of the page to itself
MAX_LINES = 14
DAY_S = 86400.0
UNITS = {"percentunit": "share", "s": "s", "bytes": "MB", "cps": "items/s", "reqps": "requests/s", "short": ""}

Span = tuple[str, float, float]  # a scene's name, begin and end
Results = Mapping[str, Sequence[Sequence[Series]]]


def draw(folder: Path, scenes: Sequence[Span], results: Results, factor: float) -> Path:
    """Draw every panel with the scenes behind it, and return the picture's path."""
    lines = list(lines_of(panels()))
    figure = pyplot.figure(figsize=(26, 4 * len(lines) + 2), layout="constrained")
    head, *parts = figure.subfigures(len(lines) + 1, 1, height_ratios=[0.35, *[1] * len(lines)])
    names = [f"{number} {name}" for number, (name, _, _) in enumerate(scenes, start=1)]
    half = (len(names) + 1) // 2
    key = "\n".join("     ".join(part) for part in (names[:half], names[half:]))
    head.suptitle(f"A scripted day: {len(scenes)} scenes\n{key}", x=0.01, ha="left", fontsize=15)
    shown = ""
    for part, line in zip(parts, lines, strict=True):
        if line[0].row != shown:
            shown = line[0].row
            part.suptitle(shown, x=0.01, ha="left", fontsize=18, fontweight="bold")
        wide = line[0].kind == WIDE
        places = part.subplots(1, 1 if wide else COLUMNS, squeeze=False)[0]
        for axes in places[len(line) :]:
            axes.axis("off")
        for axes, panel in zip(places, line, strict=False):
            (draw_states if wide else draw_lines)(axes, panel, results[panel.title], scenes[0][1], factor)
            draw_scenes(axes, scenes, factor)
            axes.set_title(panel.title, fontsize=13, loc="left")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "day.png"
    figure.savefig(path, dpi=70)
    pyplot.close(figure)
    return path


def lines_of(found: Sequence[Panel]) -> Iterator[list[Panel]]:
    """The lines of the page: panels of one row of the dashboard, as many as fit, or a wide one."""
    line: list[Panel] = []
    for panel in found:
        if line and (panel.row != line[0].row or len(line) == COLUMNS or WIDE in (panel.kind, line[0].kind)):
            yield line
            line = []
        line.append(panel)
    yield line


def draw_lines(axes: Any, panel: Panel, results: Sequence[Sequence[Series]], origin: float, factor: float) -> None:
    """Draw a panel's lines over the minutes of the day."""
    every = [(legend, one) for (_, legend), found in zip(panel.queries, results, strict=True) for one in found]
    highest = max((value for _, one in every for value in one.values), default=0.0)
    in_days = panel.unit == "s" and highest > 2 * DAY_S
    scale = 1 / DAY_S if in_days else 1e-6 if panel.unit == "bytes" else 1.0
    for legend, one in every[:MAX_LINES]:
        minutes = [(at - origin) * factor / 60 for at in one.times]
        axes.plot(minutes, [value * scale for value in one.values], ".-", ms=2, lw=1.4, label=named(legend, one))
    axes.set_ylabel("days" if in_days else UNITS[panel.unit], fontsize=10)
    if every:
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def draw_states(axes: Any, panel: Panel, results: Sequence[Sequence[Series]], origin: float, factor: float) -> None:
    """Draw one bar for each line, where it has a value."""
    every = [
        (named(legend, one), one) for (_, legend), found in zip(panel.queries, results, strict=True) for one in found
    ]
    every.sort(key=lambda pair: pair[1].times[0], reverse=True)
    for height, (_, one) in enumerate(every):
        minutes = [(at - origin) * factor / 60 for at in one.times]
        axes.plot(minutes, [height] * len(minutes), "s", ms=6)
    axes.set_yticks(range(len(every)), [name for name, _ in every], fontsize=10)
    axes.set_ylim(-0.7, max(len(every), 1) + 0.7)


def draw_scenes(axes: Any, scenes: Sequence[Span], factor: float) -> None:
    """Draw the scenes behind a panel, every other one grey, with their numbers."""
    origin = scenes[0][1]
    for number, (_, begin, end) in enumerate(scenes, start=1):
        left, right = ((at - origin) * factor / 60 for at in (begin, end))
        if number % 2 == 0:
            axes.axvspan(left, right, color="0.93", zorder=0)
        middle = (left + right) / 2
        place = axes.get_xaxis_transform()
        axes.text(middle, 0.99, str(number), fontsize=9, color="0.35", ha="center", va="top", transform=place)
    axes.set_xlim(0, (scenes[-1][2] - origin) * factor / 60)
    axes.set_xlabel("minutes of the day", fontsize=8)
    axes.tick_params(labelsize=9)


def named(legend: str, series: Series) -> str:
    """The name of a line, as Grafana makes it from its legend."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: series.labels.get(match[1], ""), legend).strip() or "value"
