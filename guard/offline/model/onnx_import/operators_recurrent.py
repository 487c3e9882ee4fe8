"""ONNX's recurrent layers, written out step by step along a time axis of fixed length.

Rule 1. What does not depend on the state before, the product with the input, is computed for all steps at once.
Rule 2. Tensors are [time, item, feature] here; layout 1 is turned on the way in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": functional.relu,
}
USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
INITIAL_STATES = frozenset({5, 6})  # operands


@dataclass(frozen=True)
class Weights:
    """What one direction of a layer works with: matrices [gate * feature, ...], of which a bias may be missing."""

    given: Tensor
    state: Tensor
    given_bias: Tensor | None
    state_bias: Tensor | None
    peepholes: Tensor | None
    functions: list[Callable[[Tensor], Tensor]]

    @property
    def width(self) -> int:
        return int(self.state.shape[1])


State = tuple[Tensor, ...]  # [item, feature]: the output, and an LSTM's cell
Step = Callable[[Node, Weights, Tensor, State], State]


def simple(_node: Node, weights: Weights, given: Tensor, state: State) -> State:
    (activation,) = weights.functions
    return (activation(given + functional.linear(state[0], weights.state, weights.state_bias)),)


def gated(node: Node, weights: Weights, given: Tensor, state: State) -> State:
    """Compute one step of a GRU: gates z (keep) and r (reset), and what is proposed."""
    (before,), width, (gate, activation) = state, weights.width, weights.functions
    bias = weights.state_bias
    keep, reset = parts(
        gate(
            given[:, : 2 * width]
            + functional.linear(before, weights.state[: 2 * width], None if bias is None else bias[: 2 * width])
        ),
        width,
    )
    own, own_bias = weights.state[2 * width :], None if bias is None else bias[2 * width :]
    late = bool(node.get("linear_before_reset", 0))
    again = (
        reset * functional.linear(before, own, own_bias) if late else functional.linear(reset * before, own, own_bias)
    )
    proposed = activation(given[:, 2 * width :] + again)
    return (proposed + keep * (before - proposed),)


def long_short(node: Node, weights: Weights, given: Tensor, state: State) -> State:
    """Compute one step of an LSTM: gates i, o, f and the cell."""
    before, cell = state
    gate, activation, last = weights.functions
    gates = given + functional.linear(before, weights.state, weights.state_bias)
    entering, leaving, kept, proposed = parts(gates, weights.width)
    if weights.peepholes is not None:
        of_entering, of_leaving, of_kept = weights.peepholes.split(weights.width)
        entering, kept = entering + of_entering * cell, kept + of_kept * cell
    entering = gate(entering)
    kept = 1.0 - entering if node.get("input_forget", 0) else gate(kept)
    cell = kept * cell + entering * activation(proposed)
    if weights.peepholes is not None:
        leaving = leaving + of_leaving * cell
    return gate(leaving) * last(cell), cell


def parts(gates: Tensor, width: int) -> tuple[Tensor, ...]:
    return tuple(torch.split(gates, width, -1))


STEPS: dict[str, Step] = {"RNN": simple, "GRU": gated, "LSTM": long_short}


def recurrent(
    node: Node,
    x: Tensor,
    matrix: Tensor,
    own: Tensor,
    bias: Tensor | None = None,
    lengths: Any = None,
    output: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a layer in its one or two directions; return Y, Y_h and, of an LSTM, Y_c."""
    turned = bool(node.get("layout", 0))
    if turned:
        x = x.transpose(0, 1)
        output, cell = (None if part is None else part.transpose(0, 1) for part in (output, cell))
    refuse_odd(node, x, lengths)
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        node.get("direction", "forward")
    ]
    initial = (output, cell) if node.kind == "LSTM" else (output,)
    found = []
    for index, backward in enumerate(directions):
        weights = weights_of(node, matrix, own, bias, peepholes, index)
        start = tuple(started(part, index, weights.width) for part in initial)
        found.append(run(node, weights, x, start, backward=backward))
    states = [torch.cat([last[place].unsqueeze(0) for _, last in found], 0) for place in range(len(found[0][1]))]
    everything = torch.cat([steps.unsqueeze(1) for steps, _ in found], 1)  # [time, direction, item, feature]
    if turned:
        everything, states = everything.permute(2, 0, 1, 3), [part.transpose(0, 1) for part in states]
    return everything, *states


def refuse_odd(node: Node, x: Tensor, lengths: Any) -> None:
    if is_symbol(x.shape[0]):
        raise node.refuse(
            "its time axis has no fixed length, or is the batch",
            "export the model with batch_first=True for inputs [item, ...] and a fixed length of time",
        )
    if lengths is not None and not bool((lengths == int(x.shape[0])).all()):
        raise node.refuse("ends at other times for each item (sequence_lens)", "export it for items of one length")
    if node.get("clip") is not None:
        raise node.refuse("clips its gates")


def weights_of(
    node: Node, matrix: Tensor, own: Tensor, bias: Tensor | None, peepholes: Tensor | None, index: int
) -> Weights:
    names = node.get("activations") or USUAL[node.kind] * matrix.shape[0]
    count = len(USUAL[node.kind])
    chosen = names[index * count : (index + 1) * count]
    if odd := [name for name in chosen if name not in ACTIVATIONS]:
        raise node.refuse(f"its activation {odd[0]} is none of {', '.join(ACTIVATIONS)}")
    given_bias, state_bias = (None, None) if bias is None else bias[index].chunk(2)
    functions = [ACTIVATIONS[name] for name in chosen]
    return Weights(
        matrix[index], own[index], given_bias, state_bias, None if peepholes is None else peepholes[index], functions
    )


def started(initial: Tensor | None, index: int, width: int) -> Tensor:
    """Return a direction's state [item, feature] before the first step; one item stands for all that are alike."""
    if initial is None:
        return torch.zeros(1, width)
    state = initial[index]
    return state if state.shape[1] == width else state.expand(state.shape[0], width)


def run(node: Node, weights: Weights, x: Tensor, state: State, *, backward: bool) -> tuple[Tensor, State]:
    """Return all outputs [time, item, feature] in the order of time, and the last state."""
    given = functional.linear(x, weights.given, weights.given_bias)
    times = range(int(x.shape[0]))
    outputs = {}
    for time in reversed(times) if backward else times:
        state = STEPS[node.kind](node, weights, given.select(0, time), state)
        outputs[time] = state[0].unsqueeze(0)
    return torch.cat([outputs[time] for time in times], 0), state


RECURRENT: dict[str, Any] = dict.fromkeys(STEPS, recurrent)
