"""Pooling and resizing as products with two fixed matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def matrices(operator: Any, height: int, width: int, *settings: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """Return an operator's two matrices, [out height, height] and [out width, width].

    They are found by applying the operator to one row or column at a time.
    """
    # Channel c is an image whose row (column) c is 1: out comes one column of a matrix times the other's row sums.
    stripes = torch.eye(height, dtype=torch.float64)[None, :, :, None].expand(1, height, height, width)
    bars = torch.eye(width, dtype=torch.float64)[None, :, None, :].expand(1, width, height, width)
    total = operator(torch.ones(1, 1, height, width, dtype=torch.float64), *settings, **more)[0, 0]
    down = operator(stripes.contiguous(), *settings, **more)[0]  # [height, out height, out width]
    across = operator(bars.contiguous(), *settings, **more)[0]
    row, column = divmod(int(total.abs().argmax()), total.shape[1])
    return down[:, :, column].T.float(), (across[:, row, :].T / total[row, column]).float()
