"""Kind of input: images, series, vectors, or tables of mixed features, and what applies to each.

Rule 1: what differs from kind to kind is asked of this value; no stage branches on the number of axes.
Rule 2: a part states the kinds that it takes (`kinds`, an attack in its traits); one that does not take an item's kind
is left out by name, and never fails in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from guard.axes import IMAGES, SERIES, VECTORS, Axes, axes_of
from guard.manifest import InputSpec
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.kind_names import KindName, Kinds
from guard.offline.data.norms import Measure
from guard.offline.data.picture_shifts import PICTURE_SHIFTS
from guard.offline.data.planes import as_planes, window_of
from guard.offline.data.series_shifts import SERIES_NEGATIVES, SERIES_SHIFTS
from guard.offline.data.shift import Shift

RESIDUAL_WINDOW_VALUES = 3  # along each axis of places
DRAWABLE_CHANNELS = (1, 3)  # of a picture
MAX_DRAWN_CHANNELS = 8  # of a series, as lines in one panel

Drawing = Literal["picture", "lines", "none"]


@dataclass(frozen=True)
class InputKind:
    """Kind of input, and what applies to its items."""

    name: KindName
    axes: Axes
    norms: tuple[Measure, ...]  # that measure a perturbation of it
    residual: Callable[[Tensor], Tensor]  # items [item, ...] -> their fine structure, of the same shape
    shifts: tuple[Shift, ...] = ()  # rows of the report
    shift_note: str = ""  # why there are none
    negatives: tuple[Shift, ...] = ()  # beside size-matched noise, what a guard learns to be no attack
    drawing: Drawing = "none"  # how the report pictures an item
    drawable_channels: tuple[int, ...] = ()
    drawing_note: str = ""  # why an item is not pictured
    features: FeatureGrid | None = None  # of a table: what each may be; None where all are alike

    def refusal(self, part: Any) -> str | None:
        """Return why a part does not apply to items of this kind, as a clause; None where it does."""
        taken, norm = kinds_of(part), getattr(part, "norm", None)
        if self.name not in taken:
            return f"it takes {in_words(taken)}, and the inputs are {self.name}"
        if norm is not None and norm not in self.norms:
            return f"its norm {norm} measures nothing in {self.name}"
        return None

    def drawn(self, shape: Sequence[int]) -> Drawing:
        """Return how items of a shape are pictured."""
        return self.drawing if shape[0] in self.drawable_channels else "none"


def kinds_of(part: Any) -> Kinds:
    """Return the kinds of input that an attack, detector or denoiser states."""
    traits = getattr(part, "traits", None)
    kinds: Kinds = part.kinds if traits is None else traits.kinds
    return kinds


def in_words(kinds: Kinds) -> str:
    """Return names of kinds as words, in the order in which they are defined."""
    *others, last = [name for name in get_args(KindName) if name in kinds]
    return f"{', '.join(others)} and {last}" if others else f"{last} alone"


def from_neighbours(items: Tensor) -> Tensor:
    """Subtract the mean of each value's neighbourhood in space or time, borders repeated."""
    planes = as_planes(items)
    rows, columns = window_of(items, RESIDUAL_WINDOW_VALUES)
    edges = (columns // 2, columns // 2, rows // 2, rows // 2)
    mean = avg_pool2d(pad(planes, edges, mode="replicate"), (rows, columns), 1)
    return items - (mean if planes is items else mean.reshape(items.shape))


def from_middle(items: Tensor) -> Tensor:
    """Subtract the middle of the unit box: features without order have no neighbours."""
    return items - 0.5


NO_PICTURE = "the inputs are not pictures of one or three channels, so there is nothing to be seen in them"

KINDS: tuple[InputKind, ...] = (
    InputKind(
        "images",
        IMAGES,
        get_args(Measure),
        from_neighbours,
        shifts=PICTURE_SHIFTS,
        drawing="picture",
        drawable_channels=DRAWABLE_CHANNELS,
        drawing_note=NO_PICTURE,
    ),
    InputKind(
        "series",
        SERIES,
        get_args(Measure),
        from_neighbours,
        shifts=SERIES_SHIFTS,
        negatives=SERIES_NEGATIVES,
        drawing="lines",
        drawable_channels=tuple(range(1, MAX_DRAWN_CHANNELS + 1)),
        drawing_note=f"the series have more than {MAX_DRAWN_CHANNELS} channels, too many lines for one panel",
    ),
    InputKind(
        "vectors",
        VECTORS,
        get_args(Measure),
        from_middle,
        shift_note="the inputs are vectors, and blur, brightness, contrast and compression are done to pictures",
        drawing_note=NO_PICTURE,
    ),
    InputKind(
        "tabular",
        VECTORS,
        get_args(Measure),
        from_middle,
        shift_note="the inputs are rows of a table, and no change of them is natural to all their features",
        drawing_note=NO_PICTURE,
    ),
)


def kind_of(shape: Sequence[int], features: FeatureGrid | None = None) -> InputKind:
    """Return the kind of items of this shape, channels first; `features` say that they are rows of a mixed table.

    Raises DataError where no kind has so many axes.
    """
    axes = axes_of(shape)
    found = next(kind for kind in KINDS if kind.axes == axes and (kind.name == "tabular") == (features is not None))
    return found if features is None else replace(found, features=features)


def kind_for(spec: InputSpec) -> InputKind:
    """Return the kind of a model's inputs; a table whose features are nothing but names holds vectors."""
    return kind_of(spec.shape, FeatureGrid.of(spec))


def kind_like(items: Tensor) -> InputKind:
    """Return the kind of a batch [item, ...] by its axes alone; rows of a mixed table are taken for vectors."""
    return kind_of(items.shape[1:])
