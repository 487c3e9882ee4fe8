"""Faults planted in a written program are refused, and numbers near zero are not taken for one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import ParityError
from guard.manifest import InputSpec
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.outputs import FORWARD_TOLERANCE, Output
from guard.offline.programs.parity import check_parity, in_parts, served
from guard.offline.programs.program import Program
from guard.session import GraphInMemory, Session
from tests.offline import tiny
from tests.offline.told import Told

WIRE = tiny.data(60, seed=51)[0]


def written(module: nn.Module, names: tuple[str, ...], wire: NDArray[np.float32] = WIRE) -> onnx.ModelProto:
    return lower(module, torch.from_numpy(wire[:4]), input_name="input", output_names=names)


def opened(model: onnx.ModelProto) -> Session:
    return Session(GraphInMemory("planted", model.SerializeToString(), {}), device="cpu", threads=1)


@pytest.fixture(scope="module")
def screen(tiny_subject: OpenedGuard) -> Program:
    """One of forward passes alone: mahalanobis and kernel_density."""
    return Program(tiny_subject.classifier, [tiny_subject.heads[n] for n in ("mahalanobis", "kernel_density")])


def tensors(program: Program, *shape: int) -> list[Tensor]:
    """The model's tensors of so many axes and so many rows."""
    own = [*program.gather.plain.parameters(), *program.gather.plain.buffers()]
    return [tensor for tensor in own if len(tensor.shape) == shape[0] and len(tensor) == shape[1]]


def one_percent_of_a_weight(program: Program) -> None:
    (first,) = tensors(program, 4, 8)
    first.view(-1)[first.abs().argmax()] *= 1.01


def a_swapped_class(program: Program) -> None:
    for tensor in (*tensors(program, 2, tiny.CLASSES), *tensors(program, 1, tiny.CLASSES)):
        tensor.copy_(tensor[[1, 0, *range(2, tiny.CLASSES)]])


def a_wrong_constant_of_a_head(program: Program) -> None:
    program.heads[1].get_buffer("scale").mul_(1.02)


def another_reference(program: Program) -> None:
    program.heads[0].get_buffer("metrics.0.centres").add_(0.05)


PLANTED: tuple[tuple[Callable[[Program], None], str], ...] = (
    (one_percent_of_a_weight, "the logits"),
    (a_swapped_class, r"the logits.*in torch.*another class is named"),
    (a_wrong_constant_of_a_head, "kernel_density"),
    (another_reference, "mahalanobis"),
)


def test_what_is_written_as_it_is_agrees(screen: Program) -> None:
    parity = check_parity("screen", screen, opened(written(screen, screen.outputs)), WIRE)
    assert max(parity.errors.values()) < 0.2, "far from the limit: the planted faults below are not drowned"


@pytest.mark.parametrize(("plant", "output"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_fault_is_refused(plant: Callable[[Program], None], output: str, screen: Program) -> None:
    other = copy.deepcopy(screen)
    with torch.no_grad():
        plant(other)
    with pytest.raises(ParityError, match=rf"'screen': {output}.*What to do"):
        check_parity("screen", screen, opened(written(other, other.outputs)), WIRE)


def test_an_operator_of_half_precision_is_refused(screen: Program) -> None:
    model = written(screen, screen.outputs)
    place, first = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    for node in model.graph.node:
        node.input[:] = ["rounded" if name == first.output[0] else name for name in node.input]
    for name, target, kind in (
        ("half", first.output[0], onnx.TensorProto.FLOAT16),
        ("rounded", "half", onnx.TensorProto.FLOAT),
    ):
        place += 1
        model.graph.node.insert(place, onnx.helper.make_node("Cast", [target], [name], to=kind))
    with pytest.raises(ParityError, match="the logits"):
        check_parity("screen", screen, opened(model), WIRE)


@pytest.mark.parametrize("column", [0, 1])
def test_a_head_that_is_off_by_a_twentieth_of_its_deviation_is_refused(column: int, screen: Program) -> None:
    told = in_parts(screen, WIRE)
    told[1][:, column] += np.float32(0.05) * told[1][:, column].std()
    with pytest.raises(ParityError, match=rf"{screen.names[column]} of item \d+ differs: .*of its standard deviation"):
        check_parity("screen", screen, Told(told), WIRE)


def test_a_refusal_says_where_and_what_to_do(screen: Program) -> None:
    told = in_parts(screen, WIRE)
    told[1][17, 1] += 1
    values = rf"{told[1][17, 1]:.6g} in ONNX Runtime, {told[1][17, 1] - 1:.6g} in torch, \S+ in double precision"
    with pytest.raises(ParityError, match=f"kernel_density of item 17 differs: {values}.*leave this detector out"):
        check_parity("screen", screen, Told(told), WIRE)


# Numbers near zero.

FEATURES, CLASSES = 2048, 3


class Shallow(nn.Module):
    """A model of one layer, and a score of one; item 7 is so unsure that its numbers are rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.spec = InputSpec("input", "FP32", (FEATURES,), (0.0,), (1.0,), None)
        self.register_buffer("weights", 30 * torch.randn(FEATURES, CLASSES + 1, generator=generator))
        self.weights: Tensor
        self.outputs = ("logits", "scores")
        self.compared = (Output("the logits", "logits"), Output("closeness", "score"))

    def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
        return self.from_unit(wire)

    def from_unit(self, unit: Tensor) -> tuple[Tensor, ...]:
        found = unit @ self.weights
        return found[:, :CLASSES], found[:, CLASSES:]

    def split(self, values: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return [values[0], values[1][:, 0]]

    def items(self) -> NDArray[np.float32]:
        items = torch.rand(40, FEATURES, generator=torch.Generator().manual_seed(1)).double()
        weights = self.weights.double()
        unsure = items[7] / 2 + 0.25
        items[7] = unsure - weights @ torch.linalg.solve(weights.T @ weights, unsure @ weights)
        return items.float().numpy()


def test_an_unsure_items_tiny_numbers_are_no_disagreement() -> None:
    shallow = Shallow()
    wire = shallow.items()
    session = opened(written(shallow, shallow.outputs, wire))
    found, expected = served(session, shallow, wire, 7), in_parts(shallow, wire)
    for one, other in zip(found, expected, strict=True):
        error = np.linalg.norm(one[7] - other[7]) / np.linalg.norm(other[7])
        assert error > 10 * FORWARD_TOLERANCE, "relative to themselves the two engines differ"
    parity = check_parity("p", shallow, session, wire)
    assert max(parity.errors.values()) < 1
    assert parity.outliers == ()


def test_items_that_rounding_explains_are_few_or_refused() -> None:
    """What float32 cannot hold is judged by double precision, and then by how many items it is."""
    shallow = Shallow()
    wire = shallow.items()
    expected = in_parts(shallow, wire)
    exact = wire.astype(np.float64) @ shallow.weights.double().numpy()
    off = 20 * float(expected[1].std()) / 1e4
    expected[1][:3] += off  # torch is off by as much as ONNX Runtime
    told = [expected[0], exact[:, CLASSES:].astype(np.float32)]
    told[1][:3] -= off

    class Off(Shallow):
        def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
            logits, scores = super().forward(wire)
            return logits, scores + off * (torch.arange(len(wire)) < self.first)[:, None]

    few = Off()
    few.first = 3
    small = wire[:16]
    with pytest.raises(ParityError, match=r"3 of 16 items.*at least 90%"):
        check_parity("p", few, Told([value[:16] for value in told]), small)
    few.first = 1
    told[1][1:3] += off
    parity = check_parity("p", few, Told([value[:16] for value in told]), small)
    assert parity.explained == (0,)
