"""Turns what a model ends in into logits [item, class]: softmax, sigmoid and argmax are taken off.

Rule 1. An attacker's gradient vanishes behind a saturated probability, and so does every detector's: none is left.
Rule 2. Where classes exclude one another, softmax of the logits gives the model's own probabilities. One number an
item, the probability of class 1 or its log-odds z, becomes (-z/2, z/2): with (0, z) an item of class 0 would have no
gradient of its own class's logit, and detectors that read it would see nothing.
Rule 3. A model of several labels an item has no one prediction, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from guard.errors import ModelError
from guard.offline.model.graph.shapes import shape_of
from guard.offline.model.output_rows import (
    CASTS,
    COPIES,
    as_rows,
    bare,
    keeps_row,
    one_number,
    over_classes,
    same,
    uncopied,
)
from guard.offline.model.served import ServedAs
from guard.offline.model.sigmoids import Odds, log_odds, past_probability
from guard.offline.model.softmaxes import normalised, softmax_logits

aten = torch.ops.aten

ARGMAX = {aten.argmax.default}
JOINED = {aten.cat.default, aten.stack.default}
SEVERAL_LABELS = (
    "the model ends in a sigmoid for each of several columns, so that an item may have several labels at once; the "
    "guard judges one prediction an item. If exactly one class holds, export the numbers before the sigmoid as "
    "--output logits; else guard a model of one label"
)
NUMBERS_BEFORE = (
    ". Logits, numbers of any size, are --output logits; of probabilities in another form, export the numbers from "
    "which they are made as --output logits, or let a student be distilled from the model's answers (--answers)"
)


@dataclass(frozen=True)
class Ending:
    """How a model's prediction is written on the wire: the kind of values, and whether there is one number an item."""

    kind: str  # logits | probabilities | label
    single: bool
    served: ServedAs = ""


def strip_final(module: fx.GraphModule, kind: str) -> Ending:
    """Rewrite a graph to end in logits [item, class], and return how the model itself ends.

    One sigmoid is known for a probability where `kind` is logits, too: its threshold is another than a logit's.

    Raises:
        ModelError: the output is declared to be probabilities or a label, but the graph does not end so, or an item
            may have several labels.
    """
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    declared: Any = output.args[0]
    last = uncast(declared)
    label = last.target in ARGMAX
    declared = largest_of(last) if label else declared
    last = bare(declared)
    single = one_number(last) and not label
    with module.graph.inserting_before(output):
        if single:
            kind, logits = from_one_number(module, last, kind)
        else:
            found = from_columns(module, last)
            if kind != "logits" and found is None and not label:
                refuse(kind, last)
            logits = as_rows(module, uncopied(declared)) if found is None else found
        output.args = (as_float32(module, logits),)
    module.graph.eliminate_dead_code()
    module.recompile()
    if single:
        return Ending(kind, single, "sigmoid" if kind == "probabilities" else "log-odds")
    return Ending(kind, single, "argmax" if label else "softmax" if found is not None else "")


def is_probability(module: fx.GraphModule) -> bool:
    """Tell whether a graph gives one probability an item."""
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    last = bare(output.args[0])
    return one_number(last) and log_odds(module, last) is not None


def uncast(node: Any) -> Any:
    """Return what is below copies, casts and axes of one, of labels too."""
    while node.target in CASTS | COPIES or keeps_row(node):
        node = node.args[0]
    return node


def largest_of(label: fx.Node) -> Any:
    """Return the scores of which a label is the largest's place. Raises ModelError where that is not a class."""
    scores: Any = label.args[0]
    axis = label.args[1] if len(label.args) > 1 else None
    if axis is None or not over_classes(scores, axis):
        raise ModelError(
            f"the model ends in an argmax over {'all axes' if axis is None else f'axis {axis}'} of {shape_of(scores)}; "
            "wanted one class an item: an argmax over axis 1 of [item, class]"
        )
    return scores


def refuse(kind: str, last: fx.Node) -> NoReturn:
    wanted = "a sigmoid" if one_number(last) else "a softmax or an argmax"
    remedy = (
        "; one number an item is the probability of class 1 (--output probabilities, behind a sigmoid) or its logit "
        "(--output logits)"
    )
    raise ModelError(
        f"--output {kind} was given, but the model's last operator is {last.target}; "
        f"wanted {wanted} there{remedy if one_number(last) else NUMBERS_BEFORE}"
    )


def from_one_number(module: fx.GraphModule, last: fx.Node, kind: str) -> tuple[str, fx.Node]:
    """Return the kind of a single number an item, and two logits in its place. Raises ModelError."""
    odds = log_odds(module, last)
    if odds is not None and kind != "label":
        return "probabilities", two_logits(module, odds)
    if changed := past_probability(module, last):
        raise ModelError(
            f"the model goes on computing with its probability ({changed.target}); wanted the sigmoid's own output, or "
            "the logit before it as --output logits"
        )
    if kind != "logits":
        refuse(kind, last)
    return kind, two_logits(module, Odds(last, 1.0))


def from_columns(module: fx.GraphModule, last: fx.Node) -> fx.Node | None:
    """Return the logits behind probabilities [item, class]; None where the columns are no probabilities.

    Raises:
        ModelError: there is a sigmoid for each of several columns, or a softmax over another axis than the classes.
    """
    logits = softmax_logits(module, last)
    if logits is not None:
        return as_rows(module, logits)
    if last.target in JOINED:
        return from_pair(module, last)
    inner = normalised(module, last)
    odds = log_odds(module, inner or last)
    if odds is None:
        return None
    if inner is None and not mirrored(module, odds.node):
        raise ModelError(SEVERAL_LABELS)
    return log_sigmoid(module, odds)


def from_pair(module: fx.GraphModule, joined: fx.Node) -> fx.Node | None:
    """Return two logits where columns 1 - p and p were joined. Raises ModelError for sigmoids joined otherwise."""
    parts: Any = joined.args[0]
    found = [log_odds(module, part) for part in parts]
    if None in found or not found:
        return None
    first, last = found[0], found[-1]
    pair = len(found) == 2 and all(one_number(part) for part in parts)
    if pair and first and last and same(first.node, last.node) and first.scale == -last.scale:
        return two_logits(module, last)
    raise ModelError(SEVERAL_LABELS)


def mirrored(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a linear layer gives -z and z, as scikit-learn's two classes of one logistic regression are."""
    if node.target is not aten.linear.default or shape_of(node)[1:] != [2]:
        return False
    fixed = [constant(module, operand) for operand in node.args[1:]]
    return all(isinstance(value, Tensor) and bool((value[0] == -value[1]).all()) for value in fixed)


def constant(module: fx.GraphModule, operand: Any) -> Tensor | None:
    operand = uncast(operand) if isinstance(operand, fx.Node) else operand
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    value: Any = module
    for part in str(operand.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def log_sigmoid(module: fx.GraphModule, odds: Odds) -> fx.Node:
    """Return the logarithm of each column's sigmoid, whose softmax is the normalised sigmoids."""
    call = module.graph.call_function
    softplus = call(aten.softplus.default, (call(aten.mul.Tensor, (as_rows(module, odds.node), -odds.scale)),))
    return call(aten.neg.default, (softplus,))


def two_logits(module: fx.GraphModule, odds: Odds) -> fx.Node:
    """Return logits [item, 2] of the two classes: (-z/2, z/2) of log-odds z."""
    call = module.graph.call_function
    if odds.two_classes:
        rows = as_rows(module, odds.node)
        return rows if odds.scale == 1 else call(aten.mul.Tensor, (rows, odds.scale))
    column = odds.node
    if len(shape_of(column)) != 2:
        column = call(aten.reshape.default, (column, [-1, 1]))
    column = as_float32(module, column, odds.node)
    module.register_buffer("two_classes", torch.tensor([-odds.scale / 2, odds.scale / 2]))
    return call(aten.mul.Tensor, (column, module.graph.get_attr("two_classes")))


def as_float32(module: fx.GraphModule, node: fx.Node, like: fx.Node | None = None) -> fx.Node:
    """Return a node as float32, where it, or the node whose numbers it holds, is of another float type."""
    value = (like or node).meta.get("val")
    if getattr(value, "dtype", torch.float32) not in (torch.float64, torch.float16, torch.bfloat16):
        return node
    return module.graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float32})
