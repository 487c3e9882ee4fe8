"""The served model beside the guard's copy of it, where it computes in fewer bits, and how far apart the two are.

Rule 1. The guard works on its copy; what clients get is the served model's answer, so the difference is measured on
real items, said, kept in the bundle, and refused where it changes too many predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.value_box import ValueBox

MAX_CHANGED_SHARE = 0.05  # of the predictions: where more differ, the guard would watch another model
MEASURED_ITEMS = 256
BATCH_ITEMS = 32
ENDINGS = ("", "softmax", "argmax")  # nothing; probabilities; the number of a class

Answers = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Served:
    """The model that answers clients; `answers` maps wire values [item, channel, height, width] to its own output."""

    form: str  # what tells it from the guard's copy: "computes in float16"
    by: str  # what answers here: "ONNX Runtime on a CPU", which computes much of float16 in float32
    answers: Answers
    ending: str = ""  # of ENDINGS: what its output is of logits


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
    served: Served, copy: Callable[[torch.Tensor], torch.Tensor], images: NDArray[np.float32], box: ValueBox
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
    found = Difference(served.form, served.by, len(chosen), changed(ours, theirs), largest(ours, theirs))
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


def as_served(logits: NDArray[np.float64], ending: str) -> NDArray[np.float64]:
    """Return logits as the served output: themselves, probabilities, or numbers of classes [item]."""
    if ending == "argmax":
        return np.asarray(logits.argmax(axis=1), np.float64)
    if ending == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return logits


def changed(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return the share of items whose predictions differ; one of numbers that are not finite does."""
    if ours.ndim == 1:
        return float((ours != theirs).mean())
    finite = np.isfinite(theirs).all(axis=1)
    return float(((ours.argmax(axis=1) != theirs.argmax(axis=1)) | ~finite).mean())


def largest(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float | None:
    """Return the largest difference of any output, in standard deviations of ours; None for labels."""
    if ours.ndim == 1:
        return None
    return float(np.abs(ours - theirs).max() / max(float(ours.std()), float(np.finfo(np.float32).tiny)))
