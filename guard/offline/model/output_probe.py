"""Probes what a model gives for logits: rows that are probabilities after all are refused, however they were made.

Rule 1. It is the last of two nets: an ending that is recognised in the graph was taken off before.
Rule 2. Values alone refuse only what no logits are, shares of one whole. Values that merely lie in [0, 1], as small
logits may, are refused where the graph squeezes them behind its last layer with weights, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from guard.errors import ModelError
from guard.offline.model.asking import asked
from guard.offline.model.final_operators import JOINED, Ending
from guard.offline.model.softmaxes import name_of
from guard.offline.model.taps import LAYERS
from guard.value_box import ValueBox

PROBED_PARTS, PART_ITEMS = 4, 4  # all of large items would not fit into a small memory
SUM_TOLERANCE = 1e-4  # by which a row of probabilities may miss 1
SQUEEZING = {"sigmoid", "hardsigmoid", "tanh", "exp", "exp2", "erf", "erfc", "atan", "softmax", "_softmax"}
OTHERWISE = (
    "wanted logits, numbers of any size: --output probabilities takes off a softmax or a sigmoid that is the last "
    "operator; of another form export the numbers from which they are made, without the last step, as --output logits, "
    "or let a student be distilled from the model's answers (--answers)"
)


def refuse_probabilities(graph: fx.GraphModule, ending: Ending, box: ValueBox) -> None:
    """Check that a graph from unit-space items ends in no probabilities of a form that was not recognised.

    Raises:
        ModelError: it does, or it cannot take all values of its range.
    """
    if ending.kind != "logits" or ending.served not in ("", "log-odds"):
        return
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    (start,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    parts = []
    for items in samples(tuple(int(size) for size in start.meta["val"].shape[1:]), box):
        part = rows_of(graph, items)
        parts.append(part[:, 1:] - part[:, :1] if ending.single else part)  # of (-z/2, z/2)
        if not np.isfinite(parts[-1]).all() or parts[-1].min() < 0:
            return
    rows = np.concatenate(parts)
    by = squeezed_by(output)
    if not ending.single and bool((np.abs(rows.sum(axis=1) - 1) <= SUM_TOLERANCE).all()):
        raise ModelError(
            f"--output logits, but for {len(rows)} items of noise each row of the model's output sums to 1 and has no "
            f"number below 0: probabilities; {OTHERWISE}"
        )
    if rows.max() <= 1 and by is not None:
        raise ModelError(
            f"--output logits, but for {len(rows)} items of noise all of the model's outputs lie in [0, 1], behind "
            f"{by.target} ({by.name}): probabilities, of which an item may have several at once; {OTHERWISE}"
        )


def samples(shape: tuple[int, ...], box: ValueBox) -> Iterator[NDArray[np.float32]]:
    """Draw noise in unit space, coarse and fine, [item, ...]; of a table, values that its features may have."""
    generator = np.random.default_rng(0)
    for _ in range(PROBED_PARTS):
        coarse = generator.random((PART_ITEMS, shape[0], *(1,) * (len(shape) - 1)), dtype=np.float32)
        fine = generator.random((PART_ITEMS, *shape), dtype=np.float32)
        yield box.to_unit(box.from_unit((coarse + fine) / 2))


def rows_of(graph: Callable[[Tensor], Tensor], items: NDArray[np.float32]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = asked(graph, torch.from_numpy(items)).double().numpy()
    return rows


def squeezed_by(output: fx.Node) -> fx.Node | None:
    """Return the operator between the last layer with weights and the output that gives numbers of a bounded range."""
    node = output
    while node.target not in LAYERS:
        if name_of(node) in SQUEEZING:
            return node
        given = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
        if not given or (len(given) > 1 and node.target not in JOINED):
            return None
        node = given[0]
    return None
