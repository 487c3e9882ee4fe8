"""Outputs of a program as the parity check compares them, each with the scale on which it is judged.

Rule 1: what rests on forward passes alone is exact for every item; what rests on a gradient jumps where that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.agreement import (
    TINY,
    flat,
    length_apart,
    logits_apart,
    tolerated,
    tolerated_latents,
    tolerated_logits,
)
from guard.fusion import Floats

FORWARD_TOLERANCE = 1e-4  # of the logits' spread over the classes
LATENT_TOLERANCE = 1e-3  # of the items' spread
PLAIN_SCORE_TOLERANCE = 1e-3  # of a score's standard deviation over clean items, where it rests on forward passes
SCORE_TOLERANCE = 1e-2  # of it where the score rests on gradients or on rounded rows
GRADIENT_TOLERANCE = 1e-3  # of the gradient's length
SMALL_GRADIENT_SHARE = 2.0**-10  # of the typical length: shorter gradients are judged as if they had that length
AGREEING_SHARE = 0.99  # of the items, of what rests on a gradient: gradients jump where a ReLU or a maximum ties

Kind = Literal["logits", "latent", "score", "gradient"]


@dataclass(frozen=True)
class Output:
    """Output of a program: its name in a refusal, its kind, and whether forward passes alone give it."""

    name: str
    kind: Kind
    forward: bool = True

    @property
    def tolerance(self) -> float:
        """Share of the output's scale by which it may differ."""
        if self.kind == "score":
            return PLAIN_SCORE_TOLERANCE if self.forward else SCORE_TOLERANCE
        return {"logits": FORWARD_TOLERANCE, "latent": LATENT_TOLERANCE, "gradient": GRADIENT_TOLERANCE}[self.kind]

    def may_differ(self, items: int) -> int:
        """Return how many of the items may be beyond the tolerance with no reason given."""
        return 0 if self.forward else int((1 - AGREEING_SHARE) * items + 1e-9)

    def tolerated(self, values: NDArray[Any]) -> Floats:
        """Return the difference that is tolerated of each item [item]; `values` [item, ...] give the scale."""
        if self.kind == "logits":
            return tolerated_logits(values, self.tolerance)
        if self.kind == "latent":
            return tolerated_latents(values, self.tolerance)
        numbers = flat(values)
        lengths = np.linalg.norm(numbers, axis=1)
        if self.kind == "score":
            return tolerated(np.full(len(numbers), numbers.std()), lengths, self.tolerance)
        floored = np.maximum(lengths, SMALL_GRADIENT_SHARE * np.median(lengths))
        return np.asarray(np.maximum(self.tolerance * floored, TINY))

    def apart(self, found: NDArray[Any], expected: NDArray[Any]) -> Floats:
        """Return how far apart two values of each item are [item]."""
        return (logits_apart if self.kind == "logits" else length_apart)(found, expected)


@dataclass(frozen=True, eq=False)
class OutputScale:
    """Outputs with the difference that is tolerated of each item."""

    outputs: tuple[Output, ...]
    allowed: Floats  # [item, output]

    @staticmethod
    def of(outputs: tuple[Output, ...], values: list[NDArray[Any]]) -> OutputScale:
        """Take the scale from real values of each output [item, ...]."""
        allowed = [output.tolerated(value) for output, value in zip(outputs, values, strict=True)]
        return OutputScale(outputs, np.stack(allowed, axis=1))

    def errors(self, found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> Floats:
        """Return how far apart values are [item, output], in what is tolerated: up to 1 they agree; NaN does not."""
        apart = [o.apart(a, b) for o, a, b in zip(self.outputs, found, expected, strict=True)]
        return np.asarray(np.stack(apart, axis=1) / self.allowed)

    def take(self, items: NDArray[np.int64]) -> OutputScale:
        """Return the scale of some of the items."""
        return OutputScale(self.outputs, self.allowed[items])

    @property
    def may_differ(self) -> NDArray[np.int64]:
        """How many of the items may be beyond the tolerance with no reason given [output]."""
        return np.asarray([output.may_differ(len(self.allowed)) for output in self.outputs])
