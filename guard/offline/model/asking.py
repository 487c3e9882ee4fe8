"""Asks a graph about values that it may not be able to take, as a code that an embedding has no row for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from guard.errors import ModelError, first_line
from guard.offline.model.onnx_import.importer import CATEGORIES


def asked(graph: Callable[[Tensor], Any], items: Tensor) -> Any:
    """Return a graph's answers to unit-space items [item, ...]. Raises ModelError where it cannot take their values."""
    try:
        with torch.no_grad():
            return graph(items)
    except (IndexError, RuntimeError) as error:  # torch's own
        raise ModelError(
            f"the model cannot be asked about all values of its range: {first_line(error)}{CATEGORIES}"
        ) from error
