"""Small ONNX graphs that hypothesis draws: a form for them, and the shapes, constants and attributes in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from guard.offline.model.onnx_import.refusals import ML
from tests.onnx_files import model_of

ML_OPSET = 3
OPSETS = (11, 13, 17, 18, 20, 21)
OMITTED = None  # an operand that is left out


@dataclass(frozen=True)
class Drawn:
    """A graph from `input` [item, *shape] to `output`, and from which values its input is drawn."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, NDArray[Any]]
    shape: tuple[int, ...]
    opset: int
    output_kind: int = TensorProto.FLOAT
    seed: int = 0
    coarse: bool = False  # whether values are halves, so that many are equal
    positive: bool = False
    fewest: int = 1  # items with which the graph means the same as with more
    items: int | None = None  # to which the file is fixed; None for any number
    ml_opset: int = ML_OPSET

    @property
    def classes(self) -> list[Any] | None:
        """The classes in the order of the scores, where the output is a map from class to score for each item."""
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in self.nodes[-1].attribute}
        if self.nodes[-1].op_type != "ZipMap":
            return None
        return given.get("classlabels_int64s") or [word.decode() for word in given["classlabels_strings"]]

    @property
    def kinds(self) -> set[str]:
        return {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in self.nodes}

    def model(self) -> onnx.ModelProto:
        sizes = [self.items or "item", *self.shape]
        model = model_of(self.nodes, self.constants, sizes, output_kind=self.output_kind, opset=self.opset)
        if any(node.domain for node in self.nodes):
            model.opset_import.append(helper.make_opsetid(ML.rstrip("."), self.ml_opset))
        if self.classes:
            key = TensorProto.INT64 if isinstance(self.classes[0], int) else TensorProto.STRING
            scores = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
            model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(scores))
        return model

    def images(self, items: int) -> NDArray[np.float32]:
        values = np.random.default_rng(self.seed).normal(0, 1.5, (items, *self.shape))
        values = np.rint(values * 2) / 2 if self.coarse else values
        return (np.abs(values) + 0.5 if self.positive else values).astype(np.float32)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001  hypothesis shows an example by it
        printer.text(str(self))

    def __str__(self) -> str:
        written = "; ".join(onnx.printer.to_text(node) for node in self.nodes)
        constants = ", ".join(
            f"{name} = {np.array2string(v, threshold=8)} {v.shape}" for name, v in self.constants.items()
        )
        sizes = ", ".join(map(str, (self.items or "item", *self.shape)))
        return f"[{sizes}] opset {self.opset}: {written} where {constants or 'nothing'}"


@dataclass
class Writer:
    """Writes one graph: draws its shape and its operator set, then takes node after node."""

    draw: Any
    shape: tuple[int, ...]
    opset: int
    positive: bool = False
    fewest: int = 1
    items: int | None = None
    ml_opset: int = ML_OPSET
    prefix: str = ""  # of the names in a branch, which may not be those of the graph around it
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    @staticmethod
    def begin(draw: Any, *, ranks: Sequence[int] = (1, 3), opsets: Sequence[int] = OPSETS, size: int = 6) -> Writer:
        rank = draw(st.sampled_from(list(ranks)))
        shape = tuple(draw(st.integers(1, size)) for _ in range(rank))
        return Writer(draw, shape, draw(st.sampled_from(list(opsets))))

    @property
    def rank(self) -> int:
        """The number of axes of the input, the batch included."""
        return len(self.shape) + 1

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def real(self, low: float, high: float) -> float:
        return float(np.float32(self.draw(st.floats(low, high, width=32, allow_subnormal=False))))

    def constant(self, value: Any) -> str:
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def numbers(self, *sizes: int, positive: bool = False) -> str:
        """A constant of noise."""
        values = np.random.default_rng(self.integer(0, 9)).normal(0, 1, sizes)
        return self.constant((np.abs(values) + 0.5 if positive else values).astype(np.float32))

    def whole(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def broadcastable(self, *, positive: bool = False) -> str:
        """A constant that broadcasts against the input and leaves its shape alone."""
        shape = (1, *self.shape)[self.integer(0, self.rank) :]
        return self.numbers(*(size if self.flag() else 1 for size in shape), positive=positive)

    def axis(self, first: int = 1) -> int:
        """An axis from `first` on, counted from the front or from the end."""
        axis = self.integer(first, self.rank - 1)
        return axis - self.rank if self.flag() else axis

    def axes(self, first: int = 1) -> list[int]:
        chosen = self.draw(st.lists(st.integers(first, self.rank - 1), min_size=1, unique=True))
        return [axis - self.rank if self.flag() else axis for axis in chosen]

    def add(self, kind: str, operands: Sequence[str | None], outputs: int = 1, **attributes: Any) -> str:
        """Add a node, attributes that are None left out; the name of its (first) result."""
        names = [f"{self.prefix}t{len(self.nodes)}.{part}" for part in range(outputs)]
        given = [name or "" for name in operands]
        while given and not given[-1]:
            given.pop()
        kept = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(kind, given, names, **kept))
        return names[0]

    def inner(self, *sizes: int) -> str:
        """The input as [item, *sizes], of which a file takes vectors."""
        self.shape = (math.prod(sizes),)
        return self.add("Reshape", ["input", self.whole(-1, *sizes)])

    def as_number(self, name: str) -> str:
        return self.add("Cast", [name], to=TensorProto.FLOAT)

    def end(self, name: str, output_kind: int = TensorProto.FLOAT) -> Drawn:
        """The graph whose output is that result."""
        for node in self.nodes:
            node.output[:] = ["output" if out == name else out for out in node.output]
            node.input[:] = ["output" if given == name else given for given in node.input]
        return Drawn(
            tuple(self.nodes),
            self.constants,
            self.shape,
            self.opset,
            output_kind,
            self.integer(0, 99),
            self.flag(),
            self.positive,
            self.fewest,
            self.items,
            self.ml_opset,
        )
