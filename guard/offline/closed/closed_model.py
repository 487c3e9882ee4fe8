"""A closed model: something that answers wire inputs, and what is known of it before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sizes = tuple[int | None, ...]  # one item's, on the wire; None where any number will do
Ask = Callable[[NDArray[Any]], NDArray[Any]]  # wire inputs [item, ...] -> the model's own output

FROM_WHOLE = "export it from X.astype(numpy.float32), so that it takes the same numbers as floats"


@dataclass(frozen=True, eq=False)
class ClosedModel:
    """A model that only answers: a file that has no gradient, a function, or a running server."""

    reference: str  # as the user wrote it
    by: str  # what computes the answers: "ONNX Runtime on a CPU"
    identity: str  # digest of what the answers follow from, as far as that can be known
    ask: Ask = field(repr=False)
    batch_items: int = 256  # at once, at most
    sizes: Sizes | None = None
    datatype: str = "FP32"  # of the wire input
    input_name: str | None = None
    output_name: str | None = None
    names: tuple[str, ...] = ()  # of the classes, where labels are words
    numbers: tuple[int, ...] = ()  # labels by class, where they are known and do not run from 0
    kept: bool = True  # whether answers are worth keeping on disk
    answered_as: Callable[[], str | None] = lambda: None  # the output's name, where only an answer tells it


def in_rows(ask: Ask, rows: int) -> Ask:
    """Return the same question for a model that is fixed to so many items at once: the last ones are repeated."""

    def ask_parts(wire: NDArray[Any]) -> NDArray[Any]:
        parts = [wire[i : i + rows] for i in range(0, len(wire), rows)]
        return np.concatenate([ask(np.resize(part, (rows, *wire.shape[1:])))[: len(part)] for part in parts])

    return ask_parts
