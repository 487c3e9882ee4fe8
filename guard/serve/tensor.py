"""The input tensor of a request, whatever protocol brought it: checks of its form and its values.

Rule 1: every check here is made for each door; what a door's own protocol adds stands in its own `decode`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest, Uninspectable
from guard.manifest import InputSpec
from guard.value_faults import value_fault

Form = Literal["raw", "typed"]
DTYPES = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
SHARED_MEMORY = "shared_memory_"
PLAIN_CONTENT = "np"  # MLServer's name for "the tensor is what it says"; any other content_type has a codec of its own


@dataclass(frozen=True)
class Decoded:
    """The input tensor of a request, as the model will read it."""

    images: NDArray[Any]  # [item, ...] wire values
    form: Form

    @property
    def digest(self) -> str:
        """SHA-256 of the tensor's bytes."""
        return tensor_digest(self.images)


def tensor_digest(images: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def check_names(names: Sequence[str], spec: InputSpec) -> None:
    """Raise MalformedRequest unless these are the names of the model's one input."""
    if list(names) != [spec.name]:
        shown = ", ".join(repr(name[:40]) for name in names[:4]) or "none"
        raise MalformedRequest(f"the request has inputs {shown}; the model takes exactly one, named {spec.name!r}")


def check_content_type(found: object, where: str) -> None:
    """Raise Uninspectable where a tensor is to be decoded by the model server; None: nothing was said."""
    if found is not None and found != PLAIN_CONTENT:
        raise Uninspectable(
            f"{where} asks for content_type {str(found)[:40]!r}, which is decoded by the model server; "
            "send the plain tensor"
        )


def check_not_elsewhere(keys: Sequence[str], name: str) -> None:
    """Raise Uninspectable where a tensor's parameters say that it lies in shared memory."""
    if any(key.startswith(SHARED_MEMORY) for key in keys):
        raise Uninspectable(f"input {name!r} lies in shared memory, where the guard cannot see it; send its bytes")


def check_not_encoded(datatype: str, name: str) -> None:
    if datatype == "BYTES":
        raise Uninspectable(
            f"input {name!r} is BYTES, an encoding that the guard does not decode; send the decoded tensor"
        )


def check_shape(datatype: str, axes: Sequence[int], spec: InputSpec, *, max_items: int | None) -> tuple[int, ...]:
    """The shape [item, ...] of a tensor of so many `axes`. Raises MalformedRequest where the model takes another."""
    if datatype != spec.datatype:
        raise MalformedRequest(f"input {spec.name!r} is {datatype[:20]!r}; the model takes {spec.datatype}")
    shape = tuple(axes[:8])  # of more axes than any input has
    if shape[1:] != spec.wire_shape or shape[0] < 1:
        wanted = ", ".join(["item", *map(str, spec.wire_shape)])
        raise MalformedRequest(
            f"input {spec.name!r} has shape {list(shape)}; the model takes [{wanted}] with at least one item"
        )
    if max_items is not None and shape[0] > max_items:
        raise MalformedRequest(
            f"a request of {shape[0]} items can never be inspected: the queue holds {max_items}; send fewer"
        )
    return shape


def raw_array(raw: memoryview, shape: tuple[int, ...], spec: InputSpec) -> NDArray[Any]:
    """The array of a tensor's own bytes, which lie anywhere in a message: a copy of them. Raises MalformedRequest."""
    wanted = math.prod(shape) * spec.dtype.itemsize
    if len(raw) != wanted:
        raise MalformedRequest(
            f"input {spec.name!r} has {len(raw)} raw bytes; its shape {list(shape)} and {spec.datatype} take {wanted}"
        )
    return np.frombuffer(raw, dtype=spec.dtype).reshape(shape).copy()


def check_values(images: NDArray[Any], spec: InputSpec) -> None:
    """Raise MalformedRequest for values that no model can take: not finite, or a category that a feature lacks."""
    if (fault := value_fault(images, spec)) is not None:
        raise MalformedRequest(fault)
