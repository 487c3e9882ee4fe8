"""Refusal of a program in words: which output of which item, both values, their scale, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ParityError
from guard.offline.programs.outputs import Kind, Output

NAMED_ITEMS = 5  # of those that differ, in a message

ADVICE: Mapping[Kind, str] = {
    "logits": "ONNX Runtime computes this model otherwise than torch: export it anew in float32, without operators of "
    "reduced precision",
    "latent": "ONNX Runtime computes this layer otherwise than torch: leave the detectors out of the recipe that read "
    "latents (mahalanobis, kernel_density, lid), or export the model anew in float32",
    "score": "leave this detector out of the recipe, or give it more clean items to be fitted on",
    "gradient": "leave the detectors out of the recipe that read the input gradient; --preset fast has none",
}


@dataclass(frozen=True, eq=False)
class Disagreement:
    """The worst item of an output in which ONNX Runtime and torch do not agree."""

    program: str
    output: Output
    items: NDArray[np.int64]  # all that differ
    item: int
    found: NDArray[Any]  # of ONNX Runtime
    expected: NDArray[Any]  # of torch
    exact: NDArray[Any] | None  # of double precision, where it was asked
    allowed: float
    compared: int
    why: str

    def error(self) -> ParityError:
        """Return the refusal as an error that says all of it."""
        place = self.place
        values = [f"{self.found.flat[place]:.6g} in ONNX Runtime", f"{self.expected.flat[place]:.6g} in torch"]
        if self.exact is not None:
            values.append(f"{self.exact.flat[place]:.6g} in double precision")
        return ParityError(
            f"program {self.program!r}: {self.output.name}{self.within} of item {self.item} differs: "
            f"{', '.join(values)}; tolerated is a difference of {self.allowed:.2g}{self.measure}. "
            f"So do {len(self.items)} of {self.compared} items, e.g. items {self.items[:NAMED_ITEMS].tolist()}"
            f"{self.why}. What to do: {ADVICE[self.output.kind]}"
        )

    @property
    def place(self) -> int:
        """Place of the value that is furthest off in the flattened output."""
        apart = np.abs(self.found.astype(np.float64) - self.expected)
        return int(np.nan_to_num(apart, nan=np.inf).argmax())

    @property
    def within(self) -> str:
        """Place of that value in words, where an item has several."""
        return f"[{self.place}]" if self.found.size > 1 else ""

    @property
    def measure(self) -> str:
        """What the tolerated difference is a share of."""
        share = f"{self.output.tolerance:g}"
        return {
            "logits": f", {share} of the logits' spread",
            "latent": f" in length, {share} of the items' spread",
            "score": f", {share} of its standard deviation",
            "gradient": f" in length, {share} of the gradient's",
        }[self.output.kind]
