"""ONNX operators of categories: a row of a fixed table looked up by a computed code, and codes as one-hot rows.

Rule 1: a code is a number of the input, so nothing here has a gradient to it; what is looked up has one to the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard.offline.model.onnx_import.graph_node import Node


def embedded(node: Node, rows: Tensor, codes: Tensor) -> Tensor:
    """Look rows of a fixed table [code, ...] up by codes of any shape."""
    if int(node.get("axis", 0)) % rows.dim() != 0 or rows.dim() != 2:
        raise node.refuse(
            f"picks places of axis {node.get('axis', 0)} of a table {list(rows.shape)} by numbers of the input",
            "look rows of a table [code, value] up, as torch.nn.Embedding does",
        )
    return nn.functional.embedding(codes.to(torch.int64), rows)


def one_hot(node: Node, codes: Tensor, depth: Any, values: Any) -> Tensor:
    """Write each code as a row of `depth` numbers, the second of `values` at its place and the first elsewhere."""
    count = int(np.ravel(depth)[0])
    off, on = (float(value) for value in np.ravel(values))
    axis = int(node.get("axis", -1))
    whole = codes.to(torch.int64)
    whole = torch.where(whole < 0, whole + count, whole)  # -1 is the last
    hot = whole.unsqueeze(-1) == torch.arange(count)
    found = hot.to(torch.float32) * (on - off) + off
    return found if axis in (-1, codes.dim()) else found.movedim(-1, axis)


CATEGORIES: dict[str, Any] = {"OneHot": one_hot}
