"""A file's inputs beside the guarded one: those that nothing depends on, and those that switch dropout on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.served import measure_difference
from tests.onnx_files import model_of

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ITEMS = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
UNUSED = {
    name: helper.make_tensor_type_proto(getattr(TensorProto, name), sizes)
    for name, sizes in [
        *(("BOOL", []), ("INT8", [2]), ("INT32", ["item", 2]), ("INT64", []), ("UINT64", [1])),
        *(("DOUBLE", ["item"]), ("FLOAT16", ["item", 3]), ("STRING", ["item"])),
    ]
}
UNUSED["a sequence"] = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))


def model_with(nodes: list[onnx.NodeProto], **inputs: onnx.TypeProto) -> onnx.ModelProto:
    """Logits of `hidden`, which the nodes compute."""
    last = helper.make_node("MatMul", ["hidden", "weights"], ["output"])
    model = model_of([*nodes, last], {"weights": WEIGHTS}, ["item", 4], output_shape=["item", 3])
    model.graph.input.extend(helper.make_value_info(name, kind) for name, kind in inputs.items())
    return model


def scalar(kind: int) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(kind, [])


@pytest.mark.parametrize("name", UNUSED)
def test_an_input_that_nothing_depends_on_may_be_of_any_type(name: str, tmp_path: Path) -> None:
    model = model_with([helper.make_node("Relu", ["input"], ["hidden"])], other=UNUSED[name])
    onnx.save(model, tmp_path / "m.onnx")
    source = Source(str(tmp_path / "m.onnx"), (4,))
    torch.testing.assert_close(open_model(source)(ITEMS), ITEMS @ torch.from_numpy(WEIGHTS))
    served = open_model(Source(source.model, (4,), served=tmp_path / "m.onnx"))
    assert served.served is not None
    assert measure_difference(served.served, served, ITEMS.numpy(), served.spec.input.box).changed == 0


@pytest.mark.parametrize("read", ["training_mode", "ratio, training_mode", "ratio"])
def test_a_dropout_that_an_input_switches_is_off(read: str, tmp_path: Path) -> None:
    operands = ["input", "ratio" if "ratio" in read else "share", "training_mode" if "mode" in read else ""]
    kinds = {"ratio": TensorProto.FLOAT, "training_mode": TensorProto.BOOL}
    inputs = {name: scalar(kind) for name, kind in kinds.items() if name in operands}
    model = model_with([helper.make_node("Dropout", operands, ["hidden"])], **inputs)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "share"))
    onnx.save(model, tmp_path / "m.onnx")
    opened = open_model(Source(str(tmp_path / "m.onnx"), (4,)))
    torch.testing.assert_close(opened(ITEMS), ITEMS @ torch.from_numpy(WEIGHTS))


def where(name: str, kind: int) -> onnx.ModelProto:
    """The input doubled, or not, as another input says."""
    nodes = [
        helper.make_node("Add", ["input", "input"], ["doubled"]),
        helper.make_node("Cast", [name], ["so"], to=TensorProto.BOOL),
        helper.make_node("Where", ["so", "doubled", "input"], ["hidden"]),
    ]
    return model_with(nodes, **{name: scalar(kind)})


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.FLOAT], ids=["a switch", "a number"])
def test_an_input_that_the_answer_depends_on_is_refused_with_what_to_do(kind: int, tmp_path: Path) -> None:
    onnx.save(where("other", kind), tmp_path / "m.onnx")
    words = r"depends on 2 inputs \(input, other\).*evaluation mode.*every other input down as a constant"
    with pytest.raises(ModelError, match=words):
        open_model(Source(str(tmp_path / "m.onnx"), (4,)))


class TwoInputs(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.linear = join, nn.Linear(4, 3)

    def forward(self, items: Tensor, other: Tensor) -> Tensor:
        result: Tensor = self.linear(self.join(items, other) * 0.5)
        return result


def program(join: Callable[[Tensor, Tensor], Tensor], file: Path) -> Source:
    shapes = ({0: torch.export.Dim("item")}, None)
    exported = torch.export.export(TwoInputs(join).eval(), (ITEMS[:2], torch.zeros(())), dynamic_shapes=shapes)
    torch.export.save(exported, file)
    return Source(str(file), (4,))


def test_an_exported_programs_unused_input_is_left_out(tmp_path: Path) -> None:
    opened = open_model(program(lambda items, _: items, tmp_path / "m.pt2"))
    assert opened(ITEMS).shape == (5, 3)


def test_an_exported_programs_second_input_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"depends on 2 inputs \(items, other\).*every other input down as a constant"):
        open_model(program(lambda items, other: items + other, tmp_path / "m.pt2"))
