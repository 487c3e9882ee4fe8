"""Figures as data URIs: the same figure is the same bytes, and nothing outside a figure is touched.

Rule 1: no figure is known to pyplot, and what drawing needs of matplotlib's settings is set for that moment alone.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's colours, which the colour-blind tell apart; the yellow is left out, being faint on white.
BLUE, ORANGE, GREEN, SKY, VERMILION, PINK, BLACK = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#56b4e9",
    "#d55e00",
    "#cc79a7",
    "#000000",
)
CYCLE = (BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, BLACK)
MARKERS = "osD^vPX"
GREY, PALE = "#59636e", "#c6cdd5"
PICTURE_DPI = 130  # of a picture made of pixels


@dataclass(frozen=True)
class Plot:
    """A drawn figure of the page, with the words around it."""

    picture: str  # a data URI
    alternative: str
    caption: str


def panels(columns: int, rows: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, row by row; the sizes are inches of the whole."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [ax for row in axes for ax in row]


def plain(ax: Axes) -> None:
    """Draw axes without a box, with a faint grid behind."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(PALE)
    ax.tick_params(colors=GREY, labelsize=8)
    ax.grid(color="#edf0f3", linewidth=0.8)
    ax.set_axisbelow(True)


def svg(figure: Figure) -> str:
    """Return a figure of lines and words as an SVG data URI."""
    return uri(figure, "svg", "svg+xml", {"Date": None, "Creator": None})


def png(figure: Figure) -> str:
    """Return a figure of pictures as a PNG data URI."""
    return uri(figure, "png", "png", {"Software": None})


def uri(figure: Figure, form: str, kind: str, metadata: dict[str, None]) -> str:
    """Return a figure as a data URI, without the date and the program's name in it."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "guard", "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format=form, dpi=PICTURE_DPI, metadata=metadata)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
