"""The served model beside the guard's copy of it, where it computes in fewer bits, and how far apart the two are.

Rule 1. The guard works on its copy; what clients get is the served model's answer, so the difference is measured on
real items, said, kept in the bundle, and refused where it changes too many predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from guard.errors import ModelError
from guard.items_on_disk import Items
from guard.value_box import ValueBox

MAX_CHANGED_SHARE = 0.05  # of the predictions: where more differ, the guard would watch another model
MEASURED_ITEMS = 256
BATCH_ITEMS = 32
# What a served output is of the copy's logits: themselves; probabilities; the number of a class; and of two classes one
# number an item, the probability of class 1 or its log-odds.
ServedAs = Literal["", "softmax", "argmax", "sigmoid", "log-odds"]

Answers = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Served:
    """The model that answers clients; `answers` maps wire values [item, channel, height, width] to its own output."""

    form: str  # what tells it from the guard's copy: "computes in float16"
    by: str  # what answers here: "ONNX Runtime on a CPU", which computes much of float16 in float32
    answers: Answers
    ending: ServedAs = ""


@dataclass(frozen=True)
class Difference:
    """The difference between a served model and the guard's copy, on so many items."""

    form: str
    by: str
    items: int
    changed: float  # share of the predictions
    largest: float | None  # of any output, in standard deviations of the outputs; None where they are labels

    def __str__(self) -> str:
        apart = "" if self.largest is None else f", outputs by up to {self.largest:.2g} of their spread"
        return (
            f"the served model {self.form}, the guard's copy is float32; by {self.by}, {self.changed:.2%} of the "
            f"predictions on {self.items} items differ{apart}"
        )


def measure_difference(
    served: Served, copy: Callable[[torch.Tensor], torch.Tensor], images: Items, box: ValueBox
) -> Difference:
    """Measure a served model against a copy that maps unit-space images [item, ...] to logits [item, class].

    Raises:
        ModelError: the served model cannot be run, has outputs of another shape, or predicts otherwise too often.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), MEASURED_ITEMS)).round().astype(int)
    wire = box.from_unit(images[chosen])
    theirs = served.answers(box.from_layout(wire).astype(np.float32)).astype(np.float64)
    ours = as_served(logits_of(copy, box.to_unit(wire)), served.ending)
    if theirs.shape != ours.shape and theirs.size != ours.size:
        raise ModelError(
            f"for {len(chosen)} items the served model gives {list(theirs.shape)}, the guard's copy "
            f"{list(ours.shape)}; wanted the same classes: name the file that was made from this model"
        )
    theirs = theirs.reshape(ours.shape)
    found = Difference(
        served.form, served.by, len(chosen), changed(ours, theirs, served.ending), largest(ours, theirs, served.ending)
    )
    if not found.changed <= MAX_CHANGED_SHARE:
        raise ModelError(
            f"{found}; wanted at most {MAX_CHANGED_SHARE:.0%} of the predictions: it is another model, or rounds too "
            "strongly to be guarded by its float copy; convert it with more bits, or calibrate its steps on more data"
        )
    return found


def logits_of(copy: Callable[[torch.Tensor], torch.Tensor], unit: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.no_grad():
        parts = [copy(torch.from_numpy(unit[i : i + BATCH_ITEMS])) for i in range(0, len(unit), BATCH_ITEMS)]
    logits: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return logits


def as_served(logits: NDArray[np.float64], ending: ServedAs) -> NDArray[np.float64]:
    """Return logits [item, class] as the served output: [item, class], one number an item, or numbers of classes."""
    if ending == "argmax":
        return np.asarray(logits.argmax(axis=1), np.float64)
    if ending == "softmax":
        return np.asarray(special.softmax(logits, axis=1))
    if ending in ("sigmoid", "log-odds"):
        odds = logits[:, 1] - logits[:, 0]
        return np.asarray(special.expit(odds) if ending == "sigmoid" else odds)
    return logits


def changed(ours: NDArray[np.float64], theirs: NDArray[np.float64], ending: ServedAs) -> float:
    """Return the share of items whose predictions differ; one of numbers that are not finite does."""
    finite = np.isfinite(theirs.reshape(len(theirs), -1)).all(axis=1)
    return float(((predicted(ours, ending) != predicted(theirs, ending)) | ~finite).mean())


def predicted(values: NDArray[np.float64], ending: ServedAs) -> NDArray[Any]:
    """Return the class of each item [item] that a served output names."""
    if ending in ("sigmoid", "log-odds"):
        return values > (0.5 if ending == "sigmoid" else 0.0)
    return values if ending == "argmax" else values.argmax(axis=1)


def largest(ours: NDArray[np.float64], theirs: NDArray[np.float64], ending: ServedAs) -> float | None:
    """Return the largest difference of any output, in standard deviations of ours; None for labels."""
    if ending == "argmax":
        return None
    return float(np.abs(ours - theirs).max() / max(float(ours.std()), float(np.finfo(np.float32).tiny)))
