"""Compares what will be used of a model with the model itself: answers and input gradients of two items.

Rule 1. Nothing is opened whose answers differ from the model's, or whose gradient cannot be computed, is no number
where the model's is one, or points elsewhere.
Rule 2. Where single precision is too coarse to tell, double precision judges.

How it works. Two gradients are used of a model: attacks climb torch's own through the canonical graph, detectors read
ours, which is written into it. Both are held against torch's through the graph as it came: on noise, and on noise of
which half is at the low end of the value box, as black pixels are, where norms and deviations are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from guard.errors import GuardError, ModelError, first_line
from guard.offline.model.gradient.input_gradient import live, with_gradient
from guard.offline.model.gradient.tape import ADJOINT_OF
from guard.offline.model.graph.batch_norm import fold_batch_norm
from guard.offline.model.graph.cut import before
from guard.offline.model.half_precision import widened
from guard.offline.model.onnx_import.importer import AGREEMENT_TOLERANCE, MAX_ROUNDED_SHARE, noise_items, relative
from guard.value_box import ValueBox

# Faults of a model itself, of which the checks on data say what to do: items that mix, and a step that has no gradient.
SAID_LATER = (
    "only the first axis, the batch, may vary",
    "does not depend on the input through anything differentiable",
)
COMPARED_ITEMS = 2  # of which the first alone is compared in its gradient's direction; the other may lie on kinks
MAX_GRADIENT_SHARE = 0.05  # by which two gradients may differ, of their length


@dataclass(frozen=True)
class ModelResponse:
    """A graph's answers to two items, and torch's gradient of them; None where torch cannot differentiate it."""

    answers: Tensor
    gradient: Tensor | None


def fault_of(candidate: fx.GraphModule, model: fx.GraphModule, box: ValueBox) -> str | None:
    """Return what a candidate, in canonical form, does otherwise than the model, as a clause; None where it is alike.

    Both take wire values with channels first. Of a model that was made for a fixed number of items or for whole
    numbers, fails on these, gives no row for each or answers otherwise each time, nothing is said: later checks know
    better why.
    """
    taken = start_of(model).meta["val"]
    if isinstance(taken.shape[0], int) or not taken.is_floating_point():
        return None
    images = compared_items(model, box)
    expected = response_of(model, images)
    if expected is None or expected.answers.shape[:1] != images.shape[:1]:
        return None
    try:
        fault = difference(candidate, expected, images)
    except ModelError as error:
        return None if any(words in str(error) for words in SAID_LATER) else str(error)
    if fault is None:
        return None
    again = response_of(model, images)
    if again is None or not torch.allclose(
        again.answers, expected.answers, rtol=AGREEMENT_TOLERANCE, atol=AGREEMENT_TOLERANCE, equal_nan=True
    ):
        return None
    narrow = (torch.float32,)
    exact = response_of(widened(model, narrow, torch.float64), images)
    try:
        if exact is not None:
            return difference(widened(candidate, narrow, torch.float64), exact, images)
    except ModelError:  # a constant of a rule or of a decomposition keeps it to single precision
        pass
    return difference(candidate, expected, images, coarse=True)


def compared_items(model: fx.GraphModule, box: ValueBox) -> Tensor:
    """Return two items of noise, the second at the low end of the value box in the first half of its last axis."""
    images = noise_items(model, box, COMPARED_ITEMS)
    low, _ = box.bounds
    half = images.shape[-1] // 2
    images[1, ..., :half] = np.broadcast_to(low, images.shape[1:])[..., :half]
    return torch.from_numpy(box.allowed(images))


def response_of(module: fx.GraphModule, images: Tensor) -> ModelResponse | None:
    """Return a graph's answers and torch's gradient of them; None where it fails on these items."""
    try:
        return differentiated(module, images)
    except ModelError:  # perhaps only of an operator in place, which torch computes and does not differentiate
        try:
            with torch.no_grad():
                return ModelResponse(computed(module, typed(module, images)), None)
        except ModelError:
            return None


def differentiated(module: fx.GraphModule, images: Tensor) -> ModelResponse:
    """Return a graph's answers and torch's gradient of them. Raises ModelError naming the operator that fails."""
    with torch.enable_grad():
        watched = typed(module, images).requires_grad_()
        answers = computed(module, watched.clone())  # a copy, for it may be changed in place
        if not answers.requires_grad:
            return ModelResponse(answers, None)
        try:
            (gradient,) = torch.autograd.grad((answers * weights(answers)).sum(), watched)
        except RuntimeError as error:  # torch's own, also of what was changed in place after it was read
            raise ModelError(f"torch cannot differentiate the model: {first_line(error)}") from error
    return ModelResponse(answers.detach(), gradient)


def difference(
    candidate: fx.GraphModule, expected: ModelResponse, images: Tensor, *, coarse: bool = False
) -> str | None:
    """Return what a candidate in canonical form does otherwise than expected; of what is coarse, only gross faults.

    Raises: ModelError where it cannot be computed or differentiated, naming the operator.
    """
    opened = fold_batch_norm(candidate)
    found, own = differentiated(opened, images), own_gradient(opened, images)
    if found.answers.shape != expected.answers.shape:
        return f"the model gives {list(found.answers.shape)} in place of {list(expected.answers.shape)}"
    finite = finite_items(expected.answers)
    here, there = (one[finite].double().numpy() for one in (found.answers, expected.answers))
    error = relative(here, there) if len(there) else 0.0
    if not error <= (MAX_ROUNDED_SHARE if coarse else AGREEMENT_TOLERANCE):
        return f"the model answers otherwise (by {error:.1e} of an item's largest output)"
    reference = found.gradient if expected.gradient is None else expected.gradient
    for gradient in (found.gradient, own):
        fault = None if gradient is None else gradient_fault(gradient, reference, coarse=coarse)
        if fault is not None:
            return fault
    return None


def gradient_fault(gradient: Tensor, reference: Tensor | None, *, coarse: bool) -> str | None:
    """Return what is wrong with a gradient [item, ...], as a clause."""
    finite = finite_items(gradient)
    wanted = torch.ones_like(finite) if reference is None else finite_items(reference)
    if bool((wanted & ~finite).any()):
        return "the model's gradient is no number where torch's is one"
    if reference is None or coarse or not bool(wanted[0]):
        return None
    here, there = (one[0].double() for one in (gradient, reference))
    apart = float((here - there).norm() / there.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if apart <= MAX_GRADIENT_SHARE:
        return None
    return f"the model's gradient differs from torch's (by {apart:.1e} of its length)"


def own_gradient(opened: fx.GraphModule, images: Tensor) -> Tensor | None:
    """Return the gradient that is written into a canonical graph; None where no change of the input moves the answers.

    Raises: ModelError naming the operator that has no adjoint, or whose adjoint cannot be computed.
    """
    moved = live(opened.graph)
    (output,) = [node for node in opened.graph.nodes if node.op == "output"]
    (scores,) = (last,) = output.all_input_nodes
    while scores not in moved and len(scores.all_input_nodes) == 1:  # of a label the scores move
        (scores,) = scores.all_input_nodes
    if scores not in moved or scores.op == "placeholder":
        return None
    graph = with_gradient(opened if scores is last else before(opened, scores.name), seed=weights)
    with torch.no_grad():
        *_, gradient = NamingInterpreter(graph).run(typed(opened, images))
    found: Tensor = gradient
    return found


def weights(answers: Tensor) -> Tensor:
    """Return a weight of its own for each number of an item's answer, so that no two of them cancel."""
    sizes = answers.shape[1:]
    return torch.ones_like(answers) * (1.0 + torch.arange(sizes.numel(), dtype=answers.dtype).reshape(sizes))


def finite_items(values: Tensor) -> Tensor:
    """Tell of which items all values are finite, [item]."""
    return values.reshape(len(values), -1).isfinite().all(dim=1)


def typed(module: fx.GraphModule, images: Tensor) -> Tensor:
    """Return a copy of the images in the type that a graph takes."""
    return images.to(start_of(module).meta["val"].dtype, copy=True)


def start_of(module: fx.GraphModule) -> fx.Node:
    """Return the node of a graph's one input."""
    (start,) = module.graph.find_nodes(op="placeholder")
    found: fx.Node = start
    return found


def computed(module: fx.GraphModule, images: Tensor) -> Tensor:
    result: Tensor = NamingInterpreter(module).run(images)
    return result


class NamingInterpreter(fx.Interpreter):
    """Interpreter of a graph whose errors name the operator, or the one whose adjoint it is part of."""

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except GuardError:
            raise
        except Exception as error:  # torch raises many kinds
            of = f"the adjoint of {n.meta[ADJOINT_OF]}" if n.meta.get(ADJOINT_OF) else f"{n.target} ({n.name})"
            raise ModelError(f"{of} cannot be computed on the model's inputs: {first_line(error)}") from error
