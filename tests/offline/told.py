"""A session that answers what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Told:
    """In the place of an ONNX Runtime session: given outputs [item, ...], in batches of any size, over and over."""

    def __init__(self, outputs: Sequence[NDArray[np.float32]]) -> None:
        self.outputs, self.place = outputs, 0

    def run(self, names: Any, inputs: NDArray[Any]) -> list[NDArray[Any]]:
        part = slice(self.place, self.place + len(inputs))
        self.place = (self.place + len(inputs)) % len(self.outputs[0])
        return [output[part] for output in self.outputs]
