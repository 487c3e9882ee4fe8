"""ONNX's Einsum as transpositions around one matrix product, each of which has an adjoint.

How it works. Of "bhij,hg->bgij" the letter h is in both operands and not in the result: it is summed over. b, i and j
are the left operand's own, g the right one's. So the left is turned to [b, i, j, h], the right to [h, g], their product
[b, i, j, g] to [b, g, i, j]. Letters of both operands that the result keeps are axes that the product is repeated over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from guard.offline.model.onnx_import.graph_node import Node
from guard.offline.model.onnx_import.shape_arithmetic import is_symbol

REMEDY = "write it as MatMul and Transpose (torch.matmul, permute)"


def einsum(node: Node, *operands: Tensor) -> Tensor:
    """Sum products over the letters that the result lacks, of one operand or two."""
    given, result = terms(node, len(operands))
    summed = [own_letters(given, result, place) for place in range(len(given))]
    operands = tuple(
        x.sum([term.index(letter) for letter in letters]) if letters else x
        for x, term, letters in zip(operands, given, summed, strict=True)
    )
    left, *rest = [
        "".join(letter for letter in term if letter not in letters) for term, letters in zip(given, summed, strict=True)
    ]
    if not rest:
        return turned(operands[0], left, result)
    return product(node, operands[0], operands[1], (left, rest[0]), result)


def terms(node: Node, operands: int) -> tuple[list[str], str]:
    """Return the letters of each operand, and of the result. Raises ModelError for what is not written out."""
    equation = str(node.get("equation")).replace(" ", "")
    if "." in equation:
        raise node.refuse(f"its {equation!r} leaves axes open", REMEDY)
    before, arrow, result = equation.partition("->")
    given = before.split(",")
    if not arrow:
        result = "".join(sorted(letter for letter in set(before) - {","} if before.count(letter) == 1))
    if len(given) != operands or operands > 2:
        raise node.refuse(f"its {equation!r} multiplies {operands} operands; one or two are supported", REMEDY)
    if any(len(set(term)) < len(term) for term in (*given, result)):
        raise node.refuse(f"its {equation!r} reads a diagonal", REMEDY)
    return given, result


def own_letters(given: Sequence[str], result: str, place: int) -> list[str]:
    """Return the letters that only one operand has, and that the result lacks."""
    others = "".join(term for other, term in enumerate(given) if other != place)
    return [letter for letter in given[place] if letter not in others and letter not in result]


def product(node: Node, left: Tensor, right: Tensor, given: tuple[str, str], result: str) -> Tensor:
    shared = [letter for letter in given[0] if letter in given[1] and letter in result]
    inner = [letter for letter in given[0] if letter in given[1] and letter not in result]
    before = [letter for letter in given[0] if letter not in given[1]]
    after = [letter for letter in given[1] if letter not in given[0]]
    sizes = {letter: size for x, term in ((right, given[1]), (left, given[0]))
             for letter, size in zip(term, x.shape, strict=True)}  # fmt: skip
    if any(is_symbol(sizes[letter]) for letter in inner):
        raise node.refuse("sums over the items of a batch", "export the model in evaluation mode")
    if any(size_of(left, given[0], letter) != size_of(right, given[1], letter) for letter in (*shared, *inner)):
        raise node.refuse("repeats an operand along an axis of size 1", "expand that axis before")
    rows = turned(left, given[0], "".join((*shared, *before, *inner)))
    columns = turned(right, given[1], "".join((*shared, *inner, *after)))
    outer = [free(sizes[letter]) for letter in shared]
    rows = rows.reshape([*outer, count(sizes, before), count(sizes, inner)])
    columns = columns.reshape([*outer, count(sizes, inner), count(sizes, after)])
    found = (rows @ columns).reshape([free(sizes[letter]) for letter in (*shared, *before, *after)])
    return turned(found, "".join((*shared, *before, *after)), result)


def turned(x: Tensor, letters: str, wanted: str) -> Tensor:
    """Transpose axes called by letters into the wanted order."""
    return x if letters == wanted else x.permute([letters.index(letter) for letter in wanted])


def size_of(x: Tensor, term: str, letter: str) -> Any:
    size = x.shape[term.index(letter)]
    return None if is_symbol(size) else int(size)


def free(size: Any) -> int:
    """Return a size, or -1 for the batch, of which there is one."""
    return -1 if is_symbol(size) else int(size)


def count(sizes: dict[str, Any], letters: Sequence[str]) -> int:
    """Return how many numbers the axes have together, or -1 where the batch is among them."""
    found = [sizes[letter] for letter in letters]
    return -1 if any(is_symbol(size) for size in found) else math.prod(int(size) for size in found)


EINSUM: dict[str, Any] = {"Einsum": einsum}
