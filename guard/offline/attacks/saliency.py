"""Saliency map of a model, and a walk that moves the map while the answer is changed or kept.

Rule 1: logits and maps are the model's own, bit for bit; only the map's derivative is a surrogate, where a rectifier's
step has none.
Rule 2: an item's map depends on no other item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import into_reach, per_item, steepest
from guard.offline.attacks.objective import gap
from guard.offline.data.planes import place_axes
from guard.offline.model.gradient.rules.pointwise import smooth_hardtanh, smooth_leaky_relu, smooth_relu, smooth_relu6

aten = torch.ops.aten
Distance: TypeAlias = Callable[[Tensor], Tensor]  # maps [item, place] -> distance to minimise [item]
Answer = Literal["change", "keep"]

SIGMOID_SLOPE = 10.0  # of the sigmoid that replaces a step where it is differentiated, as in the adaptive attack
FIRST_STEP_SHARE, LAST_STEP_SHARE = 0.5, 0.02  # the first and the last step, as shares of the budget

RECTIFIERS: Mapping[Any, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **dict.fromkeys(
        (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, aten.relu.default, aten.relu_.default),
        (torch.relu, smooth_relu),
    ),
    functional.relu6: (functional.relu6, smooth_relu6),
    **dict.fromkeys(
        (functional.hardtanh, aten.hardtanh.default, aten.hardtanh_.default), (functional.hardtanh, smooth_hardtanh)
    ),
    **dict.fromkeys(
        (functional.leaky_relu, aten.leaky_relu.default, aten.leaky_relu_.default),
        (functional.leaky_relu, smooth_leaky_relu),
    ),
}


class Bent(torch.autograd.Function):
    """Rectifier whose derivative is its own step, and can be differentiated again."""

    @staticmethod
    def forward(context: Any, operand: Tensor, rectifier: Any, rule: Any, settings: tuple[float, ...]) -> Tensor:
        context.save_for_backward(operand)
        context.rule, context.settings = rule, settings
        result: Tensor = rectifier(operand, *settings)
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (operand,) = context.saved_tensors
        return context.rule(gradient, operand, *context.settings, sharpness=SIGMOID_SLOPE), None, None, None


class Bending(TorchFunctionMode):
    """Context in which this thread's rectifiers can be differentiated twice."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if function not in RECTIFIERS:
            return function(*args, **settings)
        settings.pop("inplace", None)
        return Bent.apply(args[0], *RECTIFIERS[function], (*args[1:], *settings.values()))  # type: ignore[no-untyped-call]


def map_of(gradient: Tensor) -> Tensor:
    """Compute saliency [item, place] from an input gradient: its size, summed over channels where there are any."""
    amount = gradient.abs()
    return (amount.sum(dim=1) if place_axes(amount) else amount).flatten(1)


def saliency(model: Model, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [item, class] and the predicted class's map [item, place]; differentiable in grad mode."""
    twice = torch.is_grad_enabled()
    with torch.enable_grad(), Bending():
        watched = points if points.requires_grad else points.detach().requires_grad_()
        logits = model.module(watched)
        (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), watched, create_graph=twice)
        found = map_of(gradient)
    return (logits, found) if twice else (logits.detach(), found.detach())


def likeness(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of two maps [item, place], from 0 to 1, [item]."""
    return functional.cosine_similarity(one, other, dim=1, eps=1e-12)


@dataclass(frozen=True)
class Walk:
    """Walk that moves the saliency map under a condition on the answer.

    `change` wants the answer wrong, `confidence` logits ahead; `keep` wants it right by as much.
    """

    answer: Answer
    budget: float
    steps: int
    confidence: float

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, distance: Distance) -> Tensor:
        """Return the point of least distance among those whose answer is as wanted. L∞, deterministic.

        Both gradients count at unit length: the answer's until it is held, the map's once it is as wanted. Where no
        point's answer was as wanted, `change` returns the one that came nearest, and `keep` the input. Costs steps + 1
        forwards and two backwards each, one of them through the other.
        """
        points, best = inputs, inputs
        best_rank = torch.full((len(inputs),), -torch.inf, dtype=torch.float64, device=inputs.device)
        sign = 1.0 if self.answer == "change" else -1.0
        for step in range(self.steps + 1):
            ahead, far, by_answer, by_map = slopes(model, points, labels, distance)
            held = sign * ahead
            ranks = torch.where(held > 0, 1e3 - far.double(), self.unheld(held.double()))
            better = ranks > best_rank
            best, best_rank = torch.where(per_item(better, best), points, best), torch.where(better, ranks, best_rank)
            wants_answer = sign * (held <= self.confidence).to(points.dtype)
            direction = per_item(wants_answer, points) * steepest(by_answer, "l2")
            direction = direction - per_item((held > 0).to(points.dtype), points) * steepest(by_map, "l2")
            stride = self.budget * (
                FIRST_STEP_SHARE + (LAST_STEP_SHARE - FIRST_STEP_SHARE) * step / max(self.steps - 1, 1)
            )
            points = into_reach(points + stride * direction.sign(), inputs, self.budget, "linf")
        return best

    def unheld(self, held: Tensor) -> Tensor:
        """Rank points whose answer is not as wanted [item]."""
        return held / (1 + held.abs()) if self.answer == "change" else torch.full_like(held, -torch.inf)


def slopes(model: Model, points: Tensor, labels: Tensor, distance: Distance) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how far a wrong class leads [item], the map's distance [item], and the gradients of both."""
    with torch.enable_grad():
        watched = points.detach().requires_grad_()
        logits, found = saliency(model, watched)
        ahead, far = gap(logits, labels), distance(found)
        (by_answer,) = torch.autograd.grad(ahead.sum(), watched, retain_graph=True)
        by_map = None
        if far.requires_grad:  # a linear model's map does not depend on its input
            (by_map,) = torch.autograd.grad(far.sum(), watched, allow_unused=True)
    return ahead.detach(), far.detach(), by_answer, torch.zeros_like(points) if by_map is None else by_map
