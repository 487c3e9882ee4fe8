"""Adjoints of trigonometric and hyperbolic functions and of their inverses, elementwise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._ops import OpOverload

from guard.offline.model.gradient.rules.pointwise import off_zero
from guard.offline.model.gradient.tape import Rule, from_operand, from_output

aten = torch.ops.aten


def sine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * torch.cos(operand)


def cosine(gradient: Tensor, operand: Tensor) -> Tensor:
    return -gradient * torch.sin(operand)


def tangent(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (1.0 + output * output)


def arc_sine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / torch.sqrt(1.0 - operand * operand)


def arc_cosine(gradient: Tensor, operand: Tensor) -> Tensor:
    return -gradient / torch.sqrt(1.0 - operand * operand)


def arc_tangent(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / (1.0 + operand * operand)


def hyperbolic_sine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * torch.cosh(operand)


def hyperbolic_cosine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient * torch.sinh(operand)


def area_sine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / torch.sqrt(operand * operand + 1.0)


def area_cosine(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / torch.sqrt(operand * operand - 1.0)


def area_tangent(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient / off_zero(1.0 - operand * operand)


RULES: Mapping[OpOverload, Rule] = {
    aten.sin.default: from_operand(sine),
    aten.cos.default: from_operand(cosine),
    aten.tan.default: from_output(tangent),
    aten.asin.default: from_operand(arc_sine),
    aten.acos.default: from_operand(arc_cosine),
    aten.atan.default: from_operand(arc_tangent),
    aten.sinh.default: from_operand(hyperbolic_sine),
    aten.cosh.default: from_operand(hyperbolic_cosine),
    aten.asinh.default: from_operand(area_sine),
    aten.acosh.default: from_operand(area_cosine),
    aten.atanh.default: from_operand(area_tangent),
}
