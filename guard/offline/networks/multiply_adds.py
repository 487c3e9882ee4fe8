"""Multiply-adds of a network, by which networks are compared: what its convolutions and matrix products multiply."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(network: Callable[[Tensor], Tensor], items: Tensor) -> int:
    """Count the multiply-adds of one forward of these items [item, ...], for each of them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(items)
    return int(counter.get_total_flops()) // (2 * len(items))
