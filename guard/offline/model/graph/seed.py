"""The node that a gradient starts from: a function of the model's output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Seed(nn.Module):
    """A function of one output, as a node of the graph."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, output: Tensor) -> Tensor:
        return self.function(output)
