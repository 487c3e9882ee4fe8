"""A node of an ONNX file: one operator, as the importer reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import ModelError

WITH_OTHERS = "write this part with other operators"
OTHERWISE = f"{WITH_OTHERS}, or try the .pt2 or module:factory that the file came from"
Condition = tuple[str, bool]  # a tensor's name, and what it must be


@dataclass(frozen=True)
class Node:
    """An operator of the file: `inputs` and `outputs` name tensors, an empty name is an operand left out."""

    kind: str  # its op_type, with the domain in front where that is not ONNX's own
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    when: tuple[Condition, ...] = ()  # it runs only where all of these hold

    def __str__(self) -> str:
        return f"{self.kind} ({self.name or self.outputs[0]})"

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def refuse(self, why: str, remedy: str = OTHERWISE) -> ModelError:
        """Return the error that says what of this node cannot be done, and what to do instead."""
        return ModelError(f"{self}: {why}; {remedy}")
