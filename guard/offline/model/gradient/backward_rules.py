"""Backward rules beside the gradient: tables of adjoints in which some operators send back something else.

Rule 1. Each is a table of its own over the same forward pass, and costs one backward.

How it works. Guided backpropagation lets through a rectifier only what raises the answer: a ReLU sends back
max(0, gradient) where it is on. Layer-wise relevance propagation hands out relevance, which is a layer's value times
what is sent back to it. Of a sum z = w x + b the epsilon rule gives each term its share of z + epsilon sign(z), so what
is sent back through a linear layer is first multiplied by z / (z + epsilon sign(z)) = |z| / (|z| + epsilon); a
rectifier hands on what it gets, which its step does.

Example: z = 2 x1 - x2 at x = (1, 1) is 1. With epsilon 1 its relevance 1 is handed on as half of the terms, 1 and -0.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.rules import arithmetic, convolution, matrix, max_pool, normalisation, separable
from guard.offline.model.gradient.tape import Rule, Sent, Tape

aten = torch.ops.aten

RECTIFIERS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)
SUMS = (aten.sum.dim_IntList, aten.mean.dim, aten.batch_norm.default)
# Operators that add up terms: of each, the adjoint that the epsilon rule scales. A constant shift is no term of a sum.
ADDING: Mapping[OpOverload, Rule] = {
    **convolution.RULES,
    **matrix.RULES,
    **max_pool.RULES,
    **separable.RULES,
    **{target: arithmetic.RULES[target] for target in (aten.add.Tensor, aten.sub.Tensor)},
    **{target: normalisation.RULES[target] for target in SUMS},
}


def guided(adjoints: Mapping[OpOverload, Rule]) -> Mapping[OpOverload, Rule]:
    """Return the table of guided backpropagation. Source: Springenberg et al. 2015, arXiv:1412.6806, section 3.4."""
    return {**adjoints, **{target: only_raising(adjoints[target]) for target in RECTIFIERS}}


def lrp_epsilon(adjoints: Mapping[OpOverload, Rule], epsilon: float) -> Mapping[OpOverload, Rule]:
    """Return the table whose gradient, times the input, is the relevance by the epsilon rule.

    Operators that neither add up nor rectify, as softmax or a product of two values that move, keep their derivative.

    Source: Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58; as a table of modified derivatives, Ancona et
    al. 2018, arXiv:1711.06104, section 3.
    """
    return {**adjoints, **{target: stabilised(rule, epsilon) for target, rule in ADDING.items()}}


def only_raising(rule: Rule) -> Rule:
    """Return a rectifier's rule that sends back only what is positive."""

    def raising(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
        yield from rule(tape, node, tape.call(aten.relu.default, gradient))

    return raising


def stabilised(rule: Rule, epsilon: float) -> Rule:
    """Return the rule of an operator that adds up, with what is sent back scaled as the epsilon rule wants."""

    def shares(tape: Tape, node: fx.Node, gradient: fx.Node) -> Sent:
        shifts = node.target in (aten.add.Tensor, aten.sub.Tensor) and not all(map(tape.is_live, node.args[:2]))
        yield from rule(tape, node, gradient if shifts else tape.call(scaled, gradient, node, epsilon))

    return shares


def scaled(gradient: Tensor, output: Tensor, epsilon: float) -> Tensor:
    """Return the gradient times z / (z + epsilon sign(z)) of the output z."""
    size = output.abs()
    return gradient * (size / (size + epsilon))
