"""Answers of a function of the user's own, `module:function`: wire inputs in, labels or scores out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import ModelError, first_line
from guard.offline.closed.closed_model import ClosedModel
from guard.offline.model.user_code import import_attribute


def callable_answers(reference: str) -> ClosedModel:
    """Return the model behind a function. Raises ModelError: it cannot be imported, or is no function."""
    try:
        module, function = import_attribute(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"--answers {reference!r} cannot be imported: {error}; wanted module:function with the module on the path, "
            "an .onnx file, or HOST:PORT"
        ) from error
    if not callable(function):
        raise ModelError(
            f"--answers {reference!r} is {type(function).__name__}; wanted a function of inputs [item, ...] that "
            "returns labels [item] or scores [item, class]"
        )
    source = Path(str(getattr(module, "__file__", "")))
    code = source.read_bytes() if source.is_file() else b""
    identity = hashlib.sha256(reference.encode() + code).hexdigest()
    return ClosedModel(reference, f"the function {reference}", identity, asking(function, reference))


def asking(function: Callable[[NDArray[Any]], Any], reference: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a question to a function of the user's; whatever it raises becomes a ModelError."""

    def ask(wire: NDArray[Any]) -> NDArray[Any]:
        try:
            return np.asarray(function(wire.copy()))
        except Exception as error:  # code from outside this repository may raise anything
            raise ModelError(
                f"--answers {reference!r} raised {type(error).__name__} on inputs {list(wire.shape)} {wire.dtype}: "
                f"{first_line(error)}"
            ) from error

    return ask
