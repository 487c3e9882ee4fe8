"""The picture of an audit log: waves over time, principals, detectors, and the riskiest inputs with their maps."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import colors, dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from guard.explanation import MAP_STEPS, Explanation
from guard.offline.audit.explained import ExplainedInput
from guard.offline.audit.summary import MAX_KEPT_IMAGES, AuditSummary, KeptInput
from guard.offline.report.drawing import BLUE, GREEN, GREY, ORANGE, PINK, VERMILION, plain

DATES: Any = dates  # matplotlib leaves it untyped
COLOURS = (VERMILION, ORANGE, PINK, BLUE, GREEN)  # of the kinds, in their order
MAX_SHOWN_ROWS = 8
MAX_NAME_CHARACTERS = 32
WIDTH_INCHES, PAGE_DPI = 10.0, 110
KNOWN_CHANNELS = (1, 3, 4)
PALE_SHARE = 0.55  # of an input under its map: its darkest value


def png(summary: AuditSummary, riskiest: Sequence[ExplainedInput]) -> bytes:
    """Draw a summary, and below it its riskiest inputs and their saliency maps, as a PNG file."""
    pictures = [(one, shown) for one in riskiest if (shown := as_picture(one.kept.image)) is not None]
    maps = {place: found for place, (one, _) in enumerate(pictures) if (found := one.found) and has_map(found)}
    heights = [2.6, 2.4, *([1.4] if pictures else []), *([1.3] if maps else [])]
    with mpl.rc_context({"svg.hashsalt": "guard", "font.size": 9}):
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.3), layout="constrained")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]  # each laid out alone
        draw_waves(rows[0].subplots(), summary)
        left, right = rows[1].subplots(1, 2)
        draw_names(left, summary.principals, "requests by principal")
        draw_names(right, summary.detectors, "detector with the smallest p-value")
        if pictures:
            for (one, shown), ax in zip(pictures, strip(rows[2]), strict=False):
                draw_input(ax, one.kept, shown)
        if maps:
            rows[3].suptitle("where the answer hangs on the input: red", x=0.005, ha="left", fontsize=8)
            for place, ax in enumerate(strip(rows[3])):
                if place in maps:
                    draw_map(ax, maps[place], pictures[place][1])
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=PAGE_DPI, metadata={"Software": None})
    return stream.getvalue()


def strip(row: SubFigure) -> list[Axes]:
    """A row of places for pictures, empty as yet."""
    axes: list[Axes] = list(row.subplots(1, MAX_KEPT_IMAGES))
    for ax in axes:
        ax.set_axis_off()
    return axes


def draw_waves(ax: Axes, summary: AuditSummary) -> None:
    """Draw the events of each kind over time, stacked."""
    plain(ax)
    ax.set_title("requests over time (UTC)", loc="left", fontsize=10)
    if summary.span is None:
        ax.text(0.5, 0.5, "no line has a time", ha="center", va="center", color=GREY, transform=ax.transAxes)
        return
    edges, counts = summary.waves()
    moments: Any = DATES.date2num([datetime.fromtimestamp(edge, UTC) for edge in edges])
    below = np.zeros(len(edges) - 1)
    for (kind, count), colour in zip(counts.items(), COLOURS, strict=True):
        if count.any():
            label = f"{kind} ({int(count.sum())})"
            ax.bar(moments[:-1], count, np.diff(moments), below, align="edge", color=colour, label=label)
        below += count
    locator = DATES.AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(DATES.ConciseDateFormatter(locator, tz=UTC))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8, loc="upper left", ncols=len(COLOURS))
    ax.margins(y=0.2)


def draw_names(ax: Axes, counts: Counter[str], title: str) -> None:
    """Draw the most frequent names as bars, the first on top, and all others as one."""
    plain(ax)
    ax.set_title(title, loc="left", fontsize=10)
    shown = counts.most_common(MAX_SHOWN_ROWS)
    if rest := counts.total() - sum(count for _, count in shown):
        shown.append((f"{len(counts) - len(shown)} others", rest))
    if not shown:
        ax.text(0.5, 0.5, "none", ha="center", va="center", color=GREY, transform=ax.transAxes)
        ax.set_axis_off()
        return
    places = np.arange(len(shown))[::-1]
    bars = ax.barh(places, [count for _, count in shown], color=BLUE)
    ax.bar_label(bars, fontsize=8, padding=3, color=GREY)
    ax.set_yticks(places, [shortened(name) for name, _ in shown])
    ax.margins(x=0.12)


def shortened(name: str) -> str:
    """A name that fits beside its bar; nothing in it is read as markup."""
    text = name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in text).replace("$", r"\$")


def draw_input(ax: Axes, kept: KeptInput, shown: NDArray[np.float64]) -> None:
    """Draw a kept input with its p-value."""
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    named = "" if kept.prediction is None else f"\nclass {kept.prediction}"
    ax.set_title(f"p {kept.p_value:.2g}{named}", fontsize=7)


def has_map(found: Explanation) -> bool:
    """Whether there is a saliency map that can be drawn over a picture."""
    return found.saliency is not None and found.saliency.ndim == 2


def draw_map(ax: Axes, found: Explanation, shown: NDArray[np.float64]) -> None:
    """Draw a saliency map over its input: red where the answer hangs on the input, the input pale where not."""
    strength = np.asarray(found.saliency, dtype=np.float64)[..., None] / MAP_STEPS
    pale = PALE_SHARE + (1 - PALE_SHARE) * (shown if shown.ndim == 2 else shown[..., :3].mean(axis=-1))
    ax.imshow(
        pale[..., None] * (1 - strength) + np.asarray(colors.to_rgb(VERMILION)) * strength, interpolation="nearest"
    )
    ax.set_axis_off()
    others = [one.prediction for one in found.opinions if one.prediction != found.prediction]
    ax.set_title(f"else: class {others[0]}" if others else "all agree" if found.opinions else "", fontsize=7)


def as_picture(image: NDArray[Any]) -> NDArray[np.float64] | None:
    """An input as a picture [height, width] or [height, width, channel] of values from 0 to 1; None: it is none."""
    values = np.squeeze(np.asarray(image, dtype=np.float64))
    if values.ndim == 3 and values.shape[0] in KNOWN_CHANNELS:
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in KNOWN_CHANNELS) or not values.size:
        return None
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
