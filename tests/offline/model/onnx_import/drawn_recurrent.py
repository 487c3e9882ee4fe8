"""Strategies for graphs of one recurrent layer, in every direction and with any of its operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}  # activations of each direction
ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Tanh", "HardSigmoid")
OUTPUTS = {"RNN": ("Y", "Y_h"), "GRU": ("Y", "Y_h"), "LSTM": ("Y", "Y_h", "Y_c")}


def recurrent(kind: str) -> Drawing:
    """Draw a layer along [item, time, feature], and one of its outputs with its items first again."""

    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, ranks=(1,), opsets=(11, 14, 20))
        writer.items = writer.one_of(None, None, 1, 2)
        times, features, width = writer.integer(1, 4), writer.integer(1, 4), writer.integer(1, 3)
        direction = writer.one_of(None, "forward", "reverse", "bidirectional")
        ways, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
        steps = writer.add("Transpose", [writer.inner(times, features)], perm=[1, 0, 2])
        operands = [
            steps,
            writer.numbers(ways, gates * width, features),
            writer.numbers(ways, gates * width, width),
            writer.numbers(ways, 2 * gates * width) if writer.flag() else None,
            lengths(writer, times),
            *(state(writer, steps, (features, width), ways) for _ in OUTPUTS[kind][1:]),
        ]
        if kind == "LSTM":
            operands.append(writer.one_of(None, "peepholes") and writer.numbers(ways, 3 * width))
        writer.add(
            kind, operands, len(OUTPUTS[kind]), hidden_size=width, direction=direction, **settings(writer, kind, ways)
        )
        place = writer.integer(0, len(OUTPUTS[kind]) - 1)
        chosen = writer.nodes[-1].output[place]
        return writer.end(writer.add("Transpose", [chosen], perm=[1, 0, 2] if place else [2, 0, 1, 3]))

    return drawn


def settings(writer: Writer, kind: str, ways: int) -> dict[str, Any]:
    """Attributes that are left out more often than not."""
    names = [writer.one_of(*ACTIVATIONS) for _ in range(FUNCTIONS[kind] * ways)]
    given = {"activations": writer.one_of(None, None, names), "clip": writer.one_of(None, None, None, None, 0.5)}
    if kind == "GRU":
        given["linear_before_reset"] = writer.one_of(None, 0, 1)
    if kind == "LSTM":
        given["input_forget"] = writer.one_of(None, 0, 1)
    return given


def lengths(writer: Writer, times: int) -> str | None:
    """Lengths of the items where their number is fixed: all of the whole length, or one of a shorter one."""
    if writer.items is None or writer.flag():
        return None
    found = np.full(writer.items, times, np.int32)
    found[-1] = writer.one_of(times, times, max(1, times - 1))
    return writer.constant(found)


def state(writer: Writer, steps: str, sizes: tuple[int, int], ways: int) -> str | None:
    """Draw an initial state [direction, item, feature]: none, the same for all items, or one of each item's own."""
    features, width = sizes
    match writer.one_of("none", "alike", "own"):
        case "none":
            return None
        case "alike" if writer.items:
            one = np.random.default_rng(writer.integer(0, 9)).normal(0, 1, (ways, 1, width)).astype(np.float32)
            return writer.constant(np.repeat(one, writer.items, axis=1))
        case "alike":
            items = writer.add("Slice", [writer.add("Shape", ["input"]), writer.whole(0), writer.whole(1)])
            wanted = writer.add("Concat", [writer.whole(ways), items, writer.whole(width)], axis=0)
            return writer.add("Expand", [writer.numbers(ways, 1, width), wanted])
        case _:
            first = writer.add("Gather", [steps, writer.whole(0)], axis=0)
            own = [writer.add("MatMul", [first, writer.numbers(features, width)]) for _ in range(ways)]
            return writer.add("Concat", own, axis=0)


DRAWINGS: dict[str, Drawing] = {kind: recurrent(kind) for kind in GATES}
