"""Adjoints of elementwise operators, which work on each number by itself.

Rule 1. A jump is made by `above` or `below` and by nothing else: lowering writes both as one HardSigmoid, the only
exact comparison that ONNX Runtime computes inside its blocked convolution layout; any other costs two reorders.
Rule 2. Where a slope is infinite 0 is sent back: torch's ReLU drops what is no number, ours multiplies it.
Rule 3. At a kink the value is the one torch routes: 0 at a ReLU's zero and at both ends of ReLU6, 1 at both ends of
a clamp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from guard.offline.model.gradient.tape import Rule, Sent, Tape, from_both, from_gradient, from_operand, from_output

aten = torch.ops.aten


def above(value: Tensor, limit: float) -> Tensor:
    """Return 1 where value > limit, else 0."""
    return (value > limit).to(value.dtype)


def below(value: Tensor, limit: float) -> Tensor:
    """Return 1 where value < limit, else 0."""
    return (value < limit).to(value.dtype)


def step(value: Tensor) -> Tensor:
    """Return the derivative of a ReLU, from its operand or its output; the derivative of the step itself is 0."""
    return above(value, 0.0)


def smooth_step(value: Tensor, sharpness: float) -> Tensor:
    """Return `step`, bit for bit, with the derivative of sigmoid(sharpness * value), as if the ReLU were a softplus."""
    soft = torch.sigmoid(sharpness * value)
    return step(value) + (soft - soft.detach())


# Rectifiers test their output: after Conv and Relu have been fused their operand exists no longer.


def relu(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * step(output)


def relu6(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (step(output) * below(output, 6.0))


def hardtanh(gradient: Tensor, output: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return gradient * (above(output, low) * below(output, high))


def cast(gradient: Tensor, operand: Tensor, *_: object) -> Tensor:
    """Return the gradient through a cast from one kind of real numbers to another."""
    return gradient.to(operand.dtype)


def leaky_relu(gradient: Tensor, operand: Tensor, slope: float = 0.01) -> Tensor:
    return gradient * (slope + (1.0 - slope) * step(operand))


def clamp(gradient: Tensor, operand: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    if low is not None:
        gradient = gradient * (1.0 - below(operand, low))
    return gradient if high is None else gradient * (1.0 - above(operand, high))


def clamp_min(gradient: Tensor, operand: Tensor, low: float) -> Tensor:
    return clamp(gradient, operand, low)


def clamp_max(gradient: Tensor, operand: Tensor, high: float) -> Tensor:
    return clamp(gradient, operand, None, high)


def magnitude(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * (above(operand, 0.0) - below(operand, 0.0))


# The rectifiers again, for differentiating twice: the operand is tested, so that units that are off count as well.


def smooth_relu(gradient: Tensor, operand: Tensor, *, sharpness: float) -> Tensor:
    return gradient * smooth_step(operand, sharpness)


def smooth_hardtanh(
    gradient: Tensor, operand: Tensor, low: float = -1.0, high: float = 1.0, *, sharpness: float
) -> Tensor:
    return gradient * smooth_step(operand - low, sharpness) * smooth_step(high - operand, sharpness)


def smooth_relu6(gradient: Tensor, operand: Tensor, *, sharpness: float) -> Tensor:
    return smooth_hardtanh(gradient, operand, 0.0, 6.0, sharpness=sharpness)


def smooth_leaky_relu(gradient: Tensor, operand: Tensor, slope: float = 0.01, *, sharpness: float) -> Tensor:
    return gradient * (slope + (1.0 - slope) * smooth_step(operand, sharpness))


# Smooth units.


def sigmoid(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (output * (1.0 - output))


def silu(gradient: Tensor, output: Tensor, operand: Tensor) -> Tensor:
    """Return the gradient through SiLU as s + y (1 - s): sums and products only, and s is the forward's own."""
    share = torch.sigmoid(operand)
    return gradient * (share + output * (1.0 - share))


def hardsigmoid(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * (above(operand, -3.0) * below(operand, 3.0)) / 6.0


def hardswish(gradient: Tensor, operand: Tensor) -> Tensor:
    """Return the gradient through hard swish: h + x/6 in (-3, 3), else h, where h is the forward's hard sigmoid."""
    inside = above(operand, -3.0) * below(operand, 3.0)
    return gradient * (torch.nn.functional.hardsigmoid(operand) + operand * inside.clamp(max=1.0 / 6.0))


def tanh(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (1.0 - output * output)


def gelu(gradient: Tensor, operand: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        slope = math.sqrt(2.0 / math.pi)
        bent = torch.tanh(slope * (operand + 0.044715 * operand**3))
        inner = slope * (1.0 + 3 * 0.044715 * operand**2)
        return gradient * (0.5 * (1.0 + bent) + 0.5 * operand * (1.0 - bent * bent) * inner)
    share = 0.5 * (1.0 + torch.erf(operand * math.sqrt(0.5)))
    density = torch.exp(-0.5 * operand * operand) * (1.0 / math.sqrt(2.0 * math.pi))
    return gradient * (share + operand * density)


def erf(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * (torch.exp(-operand * operand) * (2.0 / math.sqrt(math.pi)))


def elu(gradient: Tensor, output: Tensor, operand: Tensor, alpha: float = 1.0) -> Tensor:
    return gradient * torch.where(operand > 0, torch.ones_like(output), output + alpha)


def softplus(gradient: Tensor, operand: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    bent = torch.sigmoid(beta * operand)
    return gradient * torch.where(beta * operand > threshold, torch.ones_like(bent), bent)


def exp(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * output


def off_zero(divisor: Tensor) -> Tensor:
    """Return a divisor with infinity in place of 0, so that what is divided by it sends back 0, and not 0 / 0."""
    return torch.where(divisor == 0, torch.inf, divisor)


def log(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / off_zero(operand)


def sqrt(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient / (2.0 * output)


def rsqrt(gradient: Tensor, output: Tensor, operand: Tensor) -> Tensor:
    return gradient * (-0.5 * torch.where(operand == 0, 0.0, output) / off_zero(operand))


def power(gradient: Tensor, operand: Tensor, exponent: float) -> Tensor:
    base = operand if exponent >= 1 else off_zero(operand)
    return gradient * (exponent * base ** (exponent - 1))


def negative(gradient: Tensor) -> Tensor:
    return -gradient


def remainder(gradient: Tensor, _divisor: float) -> Tensor:
    """Return the gradient through what a division by a fixed number leaves, whose slope is 1 but for its jumps."""
    return gradient


def nothing(_tape: Tape, _node: fx.Node, _gradient: fx.Node) -> Sent:
    """Send no gradient, since the operator is constant wherever it is smooth."""
    return ()


RULES: Mapping[OpOverload, Rule] = {
    aten.relu.default: from_output(relu),
    aten.relu6.default: from_output(relu6),
    aten.hardtanh.default: from_output(hardtanh),
    aten.leaky_relu.default: from_operand(leaky_relu),
    aten.to.dtype: from_operand(cast),
    aten.clamp.default: from_operand(clamp),
    aten.clamp_min.default: from_operand(clamp_min),
    aten.clamp_max.default: from_operand(clamp_max),
    aten.abs.default: from_operand(magnitude),
    aten.sigmoid.default: from_output(sigmoid),
    aten.silu.default: from_both(silu),
    aten.hardsigmoid.default: from_operand(hardsigmoid),
    aten.hardswish.default: from_operand(hardswish),
    aten.tanh.default: from_output(tanh),
    aten.gelu.default: from_operand(gelu),
    aten.erf.default: from_operand(erf),
    aten.elu.default: from_both(elu),
    aten.softplus.default: from_operand(softplus),
    aten.exp.default: from_output(exp),
    aten.log.default: from_operand(log),
    aten.sqrt.default: from_output(sqrt),
    aten.rsqrt.default: from_both(rsqrt),
    aten.pow.Tensor_Scalar: from_operand(power),
    aten.fmod.Scalar: from_gradient(remainder),
    aten.neg.default: from_gradient(negative),
    aten.sign.default: nothing,
    aten.round.default: nothing,
    aten.floor.default: nothing,
    aten.ceil.default: nothing,
    aten.detach.default: nothing,
    aten.ones_like.default: nothing,
    aten.zeros_like.default: nothing,
    aten.full_like.default: nothing,
    aten.full.default: nothing,  # as large as the batch
    aten.new_ones.default: nothing,
    aten.new_zeros.default: nothing,
    aten.new_full.default: nothing,
}


def smooth_rules(sharpness: float) -> Mapping[OpOverload, Rule]:
    """Return the rectifiers' rules with steps whose derivative is a bump of width 1/sharpness instead of 0."""
    return {
        aten.relu.default: from_operand(smooth_relu, sharpness=sharpness),
        aten.relu6.default: from_operand(smooth_relu6, sharpness=sharpness),
        aten.hardtanh.default: from_operand(smooth_hardtanh, sharpness=sharpness),
        aten.leaky_relu.default: from_operand(smooth_leaky_relu, sharpness=sharpness),
    }
