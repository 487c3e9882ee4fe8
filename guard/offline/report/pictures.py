"""The page's pictures: clean and attacked inputs side by side, with the saliency maps that detectors look at.

A series is drawn as a line for each channel, and its map below as a curve over the same time.
After figure 5 of the survey (Liu et al. 2021, SIGKDD Explorations), from the evaluation's own items.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from guard.offline.findings.evaluation import Evaluation
from guard.offline.findings.figures import Specimen
from guard.offline.report.drawing import CYCLE, GREY, VERMILION, Plot, panels, png

COLUMNS = ("clean", "attacked", "perturbation", "map of clean", "map of attacked")
LOOKED = ("looked at in clean", "looked at in attacked")  # where the model has feature maps
NEAREST = ("nearest to attacked",)  # the clean item whose last layer is nearest
COLUMN_WIDTH_INCHES = 1.84
LINE_WIDTH_POINTS = 0.9
BESIDE_SHARE = 0.03  # of the box, left free above and below lines
UNCUT_PERCENTILE = 99.5  # per cent of a map's pixels that are not cut


def picture_plot(e: Evaluation) -> Plot | None:
    """Draw a row for each specimen, below the names of the columns."""
    if e.exhibit is None or not e.exhibit.specimens:
        return None
    return Plot(draw(e.exhibit.specimens), "Clean and attacked items with saliency maps", "")


def draw(specimens: Sequence[Specimen]) -> str:
    rows, columns = len(specimens), columns_of(specimens)
    drawn, axes = panels(len(columns), rows, width=COLUMN_WIDTH_INCHES * len(columns), height=1.95 * rows)
    for row, specimen in enumerate(specimens):
        line = axes[row * len(columns) : (row + 1) * len(columns)]
        draw_specimen(dict(zip(columns, line, strict=True)), specimen)
        if row == 0:
            for ax, name in zip(line, columns, strict=True):
                ax.annotate(
                    name, (0.5, 1.0), (0, 20), "axes fraction", "offset points", ha="center", fontsize=10, weight="bold"
                )
    return png(drawn)


def columns_of(specimens: Sequence[Specimen]) -> tuple[str, ...]:
    """Return the names of the columns: those that every specimen has."""
    looked = LOOKED if all(one.clean_looked is not None for one in specimens) else ()
    return COLUMNS + looked + (NEAREST if all(one.nearest is not None for one in specimens) else ())


def draw_specimen(axes: Mapping[str, Axes], specimen: Specimen) -> None:
    change = specimen.attacked - specimen.clean
    gain = 0.5 / max(float(np.abs(change).max()), 1e-6)
    shown = (specimen.clean, specimen.attacked, 0.5 + gain * change)
    titles = (
        f"{specimen.before}, p = {specimen.clean_p:.2g}",
        f"{specimen.after}, p = {specimen.attacked_p:.2g}",
        f"x {gain:.0f}" if gain >= 2 else f"x {gain:.1f}",
    )
    show, show_map = SHOWN[specimen.clean_map.ndim]
    for ax, item, title in zip((axes[name] for name in COLUMNS[:3]), shown, titles, strict=True):
        show(ax, item)
        ax.set_title(title, fontsize=8, color=GREY, pad=3)
    maps = (specimen.clean_map, specimen.attacked_map, specimen.clean_looked, specimen.attacked_looked)
    for name, saliency in zip((*COLUMNS[3:], *LOOKED), maps, strict=True):
        if saliency is None or name not in axes:
            continue
        top = max(float(np.percentile(saliency, UNCUT_PERCENTILE)), 1e-12)
        show_map(axes[name], saliency, top)
    for name in NEAREST:
        if specimen.nearest is not None and name in axes:
            show(axes[name], specimen.nearest)
            axes[name].set_title(specimen.nearest_class, fontsize=8, color=GREY, pad=3)
    for ax in axes.values():
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[COLUMNS[0]].set_ylabel(specimen.attack.replace(" ", "\n", 1), fontsize=8.5)


def show_picture(ax: Axes, picture: NDArray[np.float32]) -> None:
    """Draw a picture [channel, height, width] in unit space."""
    image = picture.clip(0, 1)
    if len(image) == 1:
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")


def show_picture_map(ax: Axes, saliency: NDArray[np.float32], top: float) -> None:
    """Draw a saliency map [height, width], cut at `top`."""
    ax.imshow(saliency, cmap="magma", vmin=0, vmax=top, interpolation="nearest")


def show_series(ax: Axes, series: NDArray[np.float32]) -> None:
    """Draw a series [channel, time] in unit space as a line a channel."""
    for channel, color in zip(series, itertools.cycle(CYCLE)):
        ax.plot(channel, color=color, linewidth=LINE_WIDTH_POINTS)
    ax.set_ylim(-BESIDE_SHARE, 1 + BESIDE_SHARE)
    ax.set_xlim(0, series.shape[1] - 1)


def show_series_map(ax: Axes, saliency: NDArray[np.float32], top: float) -> None:
    """Draw a saliency map [time], cut at `top`, as the area below a curve."""
    ax.fill_between(np.arange(len(saliency)), saliency.clip(0, top), color=VERMILION, alpha=0.8, linewidth=0)
    ax.set_ylim(0, top)
    ax.set_xlim(0, len(saliency) - 1)


Show = Callable[[Axes, NDArray[np.float32]], None]
ShowMap = Callable[[Axes, NDArray[np.float32], float], None]
# By the number of axes of a saliency map.
SHOWN: Mapping[int, tuple[Show, ShowMap]] = {
    1: (show_series, show_series_map),
    2: (show_picture, show_picture_map),
}
