"""Adjoints of what a division leaves: left - right * n, where n is the whole number that the quotient is rounded to.

By the left operand its slope is 1, by the right one -n; it has none where n jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.tape import Rule, Sent, Tape, reduced

aten = torch.ops.aten


def towards_zero(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return what reaches the divisor of a remainder that has the dividend's sign."""
    return -gradient * (left / right).trunc()


def downwards(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return what reaches the divisor of a remainder that has the divisor's sign."""
    return -gradient * (left / right).floor()


def rule_of(by_divisor: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Rule:
    """Return the rule of a remainder, from the part of the gradient that reaches its divisor."""

    def rule(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
        left, right = node.args[:2]
        if isinstance(left, fx.Node) and tape.is_live(left):
            yield left, reduced(tape, gradient, left, node)
        if isinstance(right, fx.Node) and tape.is_live(right):
            yield right, reduced(tape, tape.call(by_divisor, gradient, left, right), right, node)

    return rule


RULES: Mapping[OpOverload, Rule] = {
    aten.fmod.Tensor: rule_of(towards_zero),
    aten.remainder.Scalar: rule_of(downwards),
    aten.remainder.Tensor: rule_of(downwards),
}
