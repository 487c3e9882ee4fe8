"""Every operator of the importer's table gives what ONNX Runtime gives, with any number of items."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from guard.errors import ModelError
from guard.offline.model.gradient.coverage import without_adjoint
from guard.offline.model.onnx_import.importer import import_onnx, relative, run_file
from guard.offline.model.onnx_import.operator_table import FUNCTIONS
from guard.offline.model.onnx_import.operators_categories import CATEGORIES
from guard.offline.model.onnx_import.operators_ml import MACHINE_LEARNING
from guard.offline.model.onnx_import.operators_places import PLACES
from guard.offline.model.onnx_import.operators_recurrent import RECURRENT
from guard.offline.model.onnx_import.shape_arithmetic import SIZES
from guard.offline.model.several_outputs import single_path
from tests.onnx_files import model_of

IMAGE = (4, 6, 5)


@dataclass(frozen=True)
class Case:
    """One operator on `input` [item, *shape] and constants; None is an operand left out."""

    kind: str
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGE
    inner: tuple[int, ...] | None = None  # what an item is reshaped to first
    first: bool = True  # whether the input is the first operand, or the last
    outputs: int = 1
    opset: int = 20
    positive: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.note}".strip()


def op(kind: str, *constants: Any, **settings: Any) -> Case:
    named = {name: settings.pop(name) for name in list(settings) if name in Case.__dataclass_fields__}
    return Case(kind, constants, settings, **named)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def floats(*values: float) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)


CHANNELS = noise(4, 1, 1, seed=1)
SCALE, SHIFT = np.abs(noise(4, seed=2)) + 0.5, noise(4, seed=3)
POINTWISE = [
    *(
        op(kind)
        for kind in ("Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Reciprocal")
    ),
    *(op(kind) for kind in ("Relu", "Round", "Sigmoid", "Sign", "Softplus", "Softsign", "Tanh")),
    *(op(kind, positive=True) for kind in ("Log", "Sqrt")),
    *(op(kind) for kind in ("Asinh", "Atan", "Cos", "Cosh", "Sin", "Sinh", "Tan")),
    *(op(kind, CHANNELS) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "PRelu")),
    op("Max", CHANNELS, noise(1), note="of three"),
    op("Sub", CHANNELS, first=False, note="from a constant"),
    op("Elu", alpha=0.7),
    op("Celu", alpha=0.7),
    op("Selu"),
    op("Gelu"),
    op("Gelu", approximate="tanh", note="by tanh"),
    op("LeakyRelu", alpha=0.2),
    op("ThresholdedRelu", alpha=0.3),
    op("HardSigmoid", alpha=0.3, beta=0.4),
    op("HardSigmoid", alpha=1 / 6, note="of MobileNet"),
    op("Swish", alpha=1.0, opset=24),
    op("Swish", alpha=1.5, opset=24, note="steeper"),
    op("Clip", np.float32(-0.3), np.float32(0.4)),
    op("Clip", None, np.float32(0.4), note="above"),
    op("Clip", np.float32(0.1), note="below"),
    op("Clip", note="of nothing"),
    op("Clip", min=0.0, max=6.0, opset=7, note="by attributes"),
    op("Pow", np.float32(2)),
    op("Pow", np.float32(0.5), positive=True, note="one half"),
    op("Pow", np.asarray([0.5, 2, 2, 3], np.float32).reshape(4, 1, 1), positive=True, note="by channel"),
    op("Pow", np.asarray([0.5, 2, 1, 3], np.float32).reshape(4, 1, 1), first=False, note="of a constant"),
    op("Pow", np.float32(2), first=False, note="of two"),
    op("Dropout", np.float32(0.5)),
    op("Cast", to=TensorProto.DOUBLE),
]
LAYERS = [
    op("ArgMax", axis=1, keepdims=0, shape=(7,)),
    op("BatchNormalization", SCALE, SHIFT, SHIFT, SCALE, epsilon=1e-3),
    op("BatchNormalization", SCALE, SHIFT, SHIFT, SCALE, shape=(4,), note="of vectors"),
    op("Conv", noise(6, 4, 3, 3), noise(6), pads=[1, 1, 1, 1], strides=[2, 1]),
    op("Conv", noise(6, 2, 2, 3), group=2, pads=[0, 1, 1, 0], dilations=[1, 2], note="uneven"),
    op("Conv", noise(4, 1, 3, 3), group=4, auto_pad="SAME_UPPER", strides=[2, 2], note="same"),
    op("Conv", noise(6, 4, 2, 2), auto_pad="SAME_LOWER", note="same, lower"),
    op("Conv", noise(6, 4, 3, 3), auto_pad="VALID", note="valid"),
    op("Conv", noise(6, 4, 1, 1), auto_pad="SAME_UPPER", strides=[2, 2], note="same, with strides beyond the kernel"),
    op("Conv", noise(6, 4, 3), noise(6), pads=[1, 0], strides=[2], shape=(28,), inner=(4, 7), note="along one axis"),
    op("ConvTranspose", noise(4, 3, 3, 2), noise(3), strides=[2, 3], pads=[1, 0, 0, 2]),
    op(
        "ConvTranspose",
        noise(4, 3, 2, 2),
        group=2,
        dilations=[2, 1],
        output_padding=[0, 1],
        strides=[1, 2],
        note="more",
    ),
    op("ConvTranspose", noise(4, 1, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", note="same"),
    op("ConvTranspose", noise(4, 1, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER", note="same, lower"),
    op("ConvTranspose", noise(4, 2, 3, 3), strides=[2, 2], output_shape=[12, 10], note="of a size"),
    op(
        "ConvTranspose", noise(4, 6, 3), noise(6), pads=[1, 0], strides=[2], shape=(28,), inner=(4, 7), note="of a line"
    ),
    op("Col2Im", ints(6, 6), ints(2, 3), strides=[2, 3], shape=(72,), inner=(12, 6), opset=18),
    op(
        "Col2Im",
        ints(5, 4),
        ints(3, 2),
        pads=[1, 0, 1, 1],
        shape=(240,),
        inner=(12, 20),
        opset=18,
        note="over each other",
    ),
    op("Col2Im", ints(5, 6), ints(2, 2), dilations=[2, 3], shape=(72,), inner=(8, 9), opset=18, note="wide"),
    op("Gemm", noise(7, 5), noise(5), shape=(7,), alpha=0.5, beta=2.0),
    op("Gemm", noise(5, 7), noise(1, 5), shape=(7,), transB=1, note="turned"),
    op("Gemm", noise(7, 5), shape=(7,), note="bare"),
    op("MatMul", noise(5, 3)),
    op("MatMul", noise(5), note="by a vector"),
    op("MatMul", noise(4, 5, 3), note="of stacks"),
    op("MatMul", noise(4, 3, 6), first=False, note="from the left"),
    op("LayerNormalization", noise(5), noise(5), epsilon=1e-3),
    op("LayerNormalization", noise(6, 5), axis=-2, note="of two axes"),
    op("GroupNormalization", noise(4), noise(4), num_groups=2, opset=21),
    op("InstanceNormalization", noise(4), noise(4)),
    op("Softmax"),
    op("Softmax", axis=1, note="of channels"),
    op("Softmax", axis=1, opset=11, note="of all from an axis"),
    op("LogSoftmax", axis=-1),
    *(op(kind, ints(2, 3), keepdims=0) for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")),
    op("ReduceSumSquare", ints(-1)),
    op("ReduceL1", ints(-1)),
    op("ReduceLogSum", ints(-1, 1), positive=True),
    op("ReduceLogSumExp", ints(1, 3)),
    op("ReduceLogSumExp", ints(2), keepdims=0, note="without the axis"),
    op("ReduceProd", ints(3, 1), keepdims=0),
    op("CumSum", np.asarray(1)),
    op("CumSum", np.asarray(-1), exclusive=1, reverse=1, note="from behind"),
    op("ReduceMax", ints(1), note="of channels"),
    op("ReduceMean", axes=[1], opset=17, note="by attribute"),
    op("ReduceSum", noop_with_empty_axes=1, note="of nothing"),
]
POOLS = [
    op("AveragePool", kernel_shape=[2, 3], strides=[2, 1]),
    op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, note="counting pads"),
    op("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER", note="same"),
    op("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, note="rounded up"),
    op("GlobalAveragePool"),
    op("GlobalMaxPool"),
    op("MaxPool", kernel_shape=[3, 2], strides=[2, 2]),
    op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER", note="same"),
    op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, dilations=[2, 1], note="rounded up"),
    op("Resize", None, np.asarray([1, 1, 2, 3], np.float32), mode="nearest"),
    op(
        "Resize",
        *(None, None, ints(1, 4, 9, 8)),
        note="to a size",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        batch=1,
    ),
    op("Resize", None, np.asarray([1, 1, 1.5, 2], np.float32), mode="linear", note="linear"),
    op(
        "Resize",
        *(None, np.asarray([1, 1, 2, 2], np.float32)),
        mode="cubic",
        coordinate_transformation_mode="align_corners",
        note="cubic",
    ),
    op("Upsample", np.asarray([1, 1, 2, 2], np.float32), mode="nearest", opset=9),
    op("Resize", np.asarray([1, 1, 2, 3], np.float32), mode="nearest", opset=10, note="without a region"),
    op("LRN", size=3, alpha=0.5, beta=0.6, bias=1.5),
    op("AveragePool", kernel_shape=[2], strides=[2], pads=[1, 0], shape=(28,), inner=(4, 7), note="along one axis"),
    op("AveragePool", kernel_shape=[3, 1, 1], shape=(120,), inner=(1, 6, 5, 4), note="along the depth"),
    op(
        "AveragePool",
        kernel_shape=[3, 1, 1],
        pads=[1, 0, 0, 1, 0, 0],
        shape=(240,),
        inner=(2, 6, 5, 4),
        note="along padded depth",
    ),
    op("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1], shape=(28,), inner=(4, 7), note="along one axis"),
    op("GlobalMaxPool", shape=(28,), inner=(4, 7), note="along one axis"),
    op("GlobalAveragePool", shape=(28,), inner=(4, 7), note="along one axis"),
]
SHAPES = [
    op("Concat", noise(1, 2, 6, 5), axis=1, batch=1),
    op("Concat", noise(1, 2, 6, 5), axis=-3, batch=1, first=False, note="behind"),
    op("DepthToSpace", blocksize=2),
    op("DepthToSpace", blocksize=2, mode="CRD", note="channels first"),
    op("SpaceToDepth", blocksize=2, shape=(3, 4, 6)),
    op("Expand", ints(1, 3, 1, 1, 1)[1:], shape=(1, 6, 5)),
    op("Flatten"),
    op("Gather", np.asarray(2), axis=1),
    op("Gather", ints(1, 2, 0), axis=2, note="several"),
    op("Gather", ints(1, 2), axis=-1, note="a run"),
    op("Gather", ints(*range(0, 30, 3), 1, 1, -1), axis=-1, shape=(120,), inner=(4, 30), note="many"),
    op("Gather", ints(1, 2, 0, 1).reshape(2, 2), axis=2, note="in rows"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect", note="by reflection"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode="edge", note="by the edge"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode="wrap", note="by turns"),
    op("Slice", ints(-1), ints(-9), ints(2), ints(-1), note="backwards"),
    op("Slice", ints(4), ints(1), ints(2), ints(-2), note="backwards by two"),
    op("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)),
    op("Pad", ints(1, 2), None, ints(-1), note="of one axis"),
    op("Pad", pads=[0, 0, 0, 0, 0, 0, 0, 0], opset=7, note="of nothing"),
    op("Reshape", ints(-1, 2, 60)),
    op("Reshape", ints(0, -1), note="by copying"),
    op("Slice", ints(1, 0), ints(5, 2**62), ints(2, 3), ints(2, 1)),
    op("Slice", starts=[0, 1], ends=[2**31 - 1, -1], axes=[0, 1], opset=9, note="by attributes"),
    op("Split", axis=2, num_outputs=2, outputs=2),
    op("Split", ints(1, 3), axis=1, outputs=2, note="uneven"),
    op("Split", split=[2, 2], axis=1, outputs=2, opset=11, note="by attribute"),
    op("Squeeze", ints(1), shape=(1, 6, 5)),
    op("Squeeze", shape=(1, 6, 1), note="of all"),
    op("Squeeze", axes=[-1], shape=(4, 6, 1), opset=11, note="by attribute"),
    op("Tile", ints(1, 1, 2, 1)),
    op("Tile", ints(1, 3, 1, 1), shape=(1, 6, 5), note="of one"),
    op("Transpose", perm=[0, 2, 3, 1]),
    op("Trilu"),
    op("Trilu", np.asarray(-1), upper=0, note="the lower"),
    op("Unsqueeze", ints(1, -1)),
    op("Unsqueeze", axes=[2], opset=11, note="by attribute"),
]
CASES = [*POINTWISE, *LAYERS, *POOLS, *SHAPES]


def compare(model: onnx.ModelProto, folder: Path, shape: tuple[int, ...], *, positive: bool = False) -> None:
    """The exported import against ONNX Runtime, on another number of items than it was traced with."""
    file = folder / "m.onnx"
    onnx.save(model, file)
    imported = import_onnx(file, shape)
    images = noise(3, *shape, seed=9)
    images = np.abs(images) + np.float32(0.1) if positive else images
    expected = run_file(imported, images)
    graph = single_path(imported.program)
    with torch.no_grad():
        found = graph(torch.from_numpy(images)).numpy()
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5
    assert without_adjoint(graph) == [], "what the importer writes can be differentiated"


def graph_of(case: Case) -> onnx.ModelProto:
    batch = case.attributes.get("batch", "item")
    given = {f"c{i}": np.asarray(value) for i, value in enumerate(case.constants) if value is not None}
    names = [f"c{i}" if value is not None else "" for i, value in enumerate(case.constants)]
    operands = ["input", *names] if case.first else [*names, "input"]
    outputs = [f"part{i}" for i in range(case.outputs)] if case.outputs > 1 else ["output"]
    attributes = {name: value for name, value in case.attributes.items() if name != "batch"}
    nodes = []
    if case.inner:
        given["inner"] = ints(-1, *case.inner)
        nodes = [helper.make_node("Reshape", ["input", "inner"], ["turned"])]
        operands = ["turned" if name == "input" else name for name in operands]
    nodes.append(helper.make_node(case.kind, operands, outputs, **attributes))
    if case.outputs > 1:
        last = [helper.make_node("Sigmoid", [name], [f"{name} after"]) for name in outputs]
        nodes += [
            *last,
            helper.make_node("Concat", [f"{n} after" for n in outputs], ["output"], axis=attributes["axis"]),
        ]
    kinds = {"ArgMax": TensorProto.INT64, "Cast": attributes.get("to", TensorProto.FLOAT)}
    return model_of(
        nodes, given, [batch, *case.shape], output_kind=kinds.get(case.kind, TensorProto.FLOAT), opset=case.opset
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_gives_what_onnx_runtime_gives(case: Case, tmp_path: Path) -> None:
    compare(graph_of(case), tmp_path, case.shape, positive=case.positive)


@pytest.mark.parametrize("kind", ["Acos", "Acosh", "Asin", "Atanh"])
def test_inverses_within_what_they_are_defined_for(kind: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["input"], ["between"]),
        helper.make_node("Sub" if kind != "Acosh" else "Add", ["between", "shift"], ["moved"]),
        helper.make_node(kind, ["moved"], ["output"]),
    ]
    constants = {"shift": np.float32(1.1 if kind == "Acosh" else 0.4)}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


# Comparisons and choices end in numbers again.


@pytest.mark.parametrize("kind", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_and_choices(kind: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sign", ["input"], ["sign"]),
        helper.make_node(kind, ["sign", "one"], ["is"]),
        helper.make_node("Not", ["is"], ["is not"]),
        helper.make_node("Where", ["is not", "input", "one"], ["output"]),
    ]
    compare(model_of(nodes, {"one": np.float32(1)}, ["item", *IMAGE]), tmp_path, IMAGE)


@pytest.mark.parametrize("kind", ["And", "Or", "Xor"])
def test_both_or_either(kind: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Greater", ["input", "low"], ["above"]),
        helper.make_node("Less", ["input", "high"], ["below"]),
        helper.make_node(kind, ["above", "below"], ["both"]),
        helper.make_node("Cast", ["both"], ["output"], to=TensorProto.FLOAT),
    ]
    constants = {"low": np.float32(0.1), "high": np.float32(0.3)}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


@pytest.mark.parametrize(
    ("kind", "signs"),
    [("IsNaN", {}), ("IsInf", {}), ("IsInf", {"detect_negative": 0}), ("IsInf", {"detect_positive": 0})],
)
def test_numbers_that_are_none(kind: str, signs: dict[str, int], tmp_path: Path) -> None:
    """Of what is left below 0.3 the logarithm is none or minus infinity, and its quotient plus infinity."""
    nodes = [
        helper.make_node("Max", ["input", "low"], ["clipped"]),
        helper.make_node("Sub", ["clipped", "low"], ["rest"]),  # 0 where it was clipped
        helper.make_node("Reciprocal", ["rest"], ["above"]),
        helper.make_node("Log", ["rest"], ["below"]),
        helper.make_node("Where", ["side", "above", "below"], ["both"]),
        helper.make_node("Mul", ["both", "factor"], ["some"]),  # infinity * 0 is no number
        helper.make_node(kind, ["some"], ["odd"], **signs),
        helper.make_node("Where", ["odd", "low", "input"], ["output"]),
    ]
    side = np.arange(120).reshape(1, *IMAGE) % 2 == 0
    factor = (np.arange(120).reshape(1, *IMAGE) % 3 > 0).astype(np.float32)
    constants = {"low": np.float32(0.3), "side": side, "factor": factor}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


def test_a_constant_mask_that_is_repeated_for_each_item(tmp_path: Path) -> None:
    """The default exporter writes attention so: a mask for any number of items, rows without a share become zero."""
    nodes = [
        helper.make_node("Shape", ["input"], ["items"], start=0, end=1),
        helper.make_node("Concat", ["items", "rest"], ["sizes"], axis=0),
        helper.make_node("Expand", ["mask", "sizes"], ["masks"]),
        helper.make_node("Where", ["masks", "zero", "never"], ["bias"]),
        helper.make_node("Add", ["input", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("IsNaN", ["shares"], ["none"]),
        helper.make_node("Where", ["none", "zero", "shares"], ["output"]),
    ]
    mask = np.tri(IMAGE[1], IMAGE[2], dtype=bool)[None, None]
    constants = {"rest": ints(*IMAGE), "mask": mask, "zero": np.float32(0), "never": np.float32(-np.inf)}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


EINSUMS = {
    "nchw,cd->ndhw": (4, 3),  # heads that talk to each other
    "nchw,nchv->ncwv": None,  # of the input with itself: a product for each item and channel
    "nchw,nchv->nwv": None,
    "nchw,chd->ncdw": (4, 6, 2),
    "cd,nchw->nhwd": (4, 3),
    "nchw->nwc": None,
    "nchw,w->nch": (5,),
    "nchw,n c h w -> n h": None,
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum(equation: str, tmp_path: Path) -> None:
    sizes = EINSUMS[equation]
    left, *rest = equation.split("->")[0].replace(" ", "").split(",")
    others = ["input"] if sizes is None else ["other"]
    operands = ["input"] if not rest else [*others, "input"] if left == "cd" else ["input", *others]
    nodes = [helper.make_node("Einsum", operands, ["output"], equation=equation)]
    constants = {} if sizes is None else {"other": noise(*sizes, seed=5)}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


@pytest.mark.parametrize(
    ("equation", "why"),
    [("...hw,wv->...hv", "leaves axes open"), ("nchw,nchv->cwv", "over the items"), ("nchw,ww->nch", "a diagonal")],
)
def test_an_einsum_that_is_not_taken_says_why(equation: str, why: str, tmp_path: Path) -> None:
    operand = "input" if "nchv" in equation else "other"
    nodes = [helper.make_node("Einsum", ["input", operand], ["output"], equation=equation)]
    onnx.save(model_of(nodes, {"other": noise(5, 5)}, ["item", *IMAGE]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"Einsum.*{why}.*torch\.matmul|Einsum.*{why}.*evaluation mode"):
        import_onnx(tmp_path / "m.onnx", IMAGE)


def test_channels_folded_into_the_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["input"], ["rows"], axis=2),
        helper.make_node("Softmax", ["rows"], ["shares"]),
        helper.make_node("Reshape", ["shares", "sizes"], ["output"]),
    ]
    compare(model_of(nodes, {"sizes": ints(-1, 4, 30)}, ["item", *IMAGE]), tmp_path, IMAGE)


def test_attention(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["input", "two"], ["key"]),
        helper.make_node("Attention", ["input", "key", "input"], ["output"], scale=0.3),
    ]
    compare(model_of(nodes, {"two": np.float32(2)}, ["item", *IMAGE], opset=23), tmp_path, IMAGE)


# Arithmetic on sizes.


def sized(kind: str, *operands: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(kind, list(operands), ["size"], **attributes)]


NUMBERS: dict[str, NDArray[Any]] = {
    "zero": np.asarray(0),
    "one": np.asarray(1),
    "two": np.asarray(2),
    "four": np.asarray(4),
    "minus one": np.asarray(-1),
    "first": ints(0),
    "second": ints(1),
    "third": ints(2),
    "last": ints(-1),
    "pairs": ints(-1, 2),
    "place": ints(1)[None],
    "half": np.float32(0.5),
}
SIZED: dict[str, list[onnx.NodeProto]] = {
    kind: sized(kind, "height", "two") for kind in ("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Pow")
}
SIZED |= {kind: sized(kind, "height", "two") for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")}
SIZED |= {
    kind: [
        helper.make_node("Greater", ["height", "four"], ["is"]),
        helper.make_node("Less", ["height", "four"], ["is less"]),
        helper.make_node(kind, ["is", "is less"], ["found"]),
        *sized("Where", "found", "two", "height"),
    ]
    for kind in ("And", "Or")
}
SIZED |= {
    "Cast": sized("Cast", "height", to=TensorProto.FLOAT),
    "Sqrt": [helper.make_node("Cast", ["height"], ["real"], to=TensorProto.FLOAT), *sized("Sqrt", "real")],
    "Neg": sized("Neg", "height"),
    "Abs": [helper.make_node("Neg", ["height"], ["below"]), *sized("Abs", "below")],
    "Transpose": [
        helper.make_node("Reshape", ["sizes", "pairs"], ["table"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "last"], ["list"]),
        *sized("Gather", "list", "one"),
    ],
    "Identity": sized("Identity", "height"),
    "Squeeze": [helper.make_node("Unsqueeze", ["height", "first"], ["list"]), *sized("Squeeze", "list", "first")],
    "Unsqueeze": sized("Unsqueeze", "height", "first"),
    "Slice": sized("Slice", "sizes", "second", "third"),
    "Shape": sized("Shape", "sizes"),
    "Reshape": sized("Reshape", "height", "last"),
    **{
        kind: [helper.make_node("Slice", ["sizes", "second", "third"], ["part"]), *sized(kind, "part")]
        for kind in ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
    },
    "Flatten": [
        helper.make_node("Slice", ["sizes", "second", "last"], ["part"]),
        helper.make_node("Flatten", ["part"], ["table"], axis=0),
        *sized("ReduceProd", "table", keepdims=0),
    ],
    "Tile": [
        helper.make_node("Slice", ["sizes", "second", "last"], ["part"]),
        helper.make_node("Tile", ["part", "third"], ["twice"]),
        *sized("ReduceSum", "twice", keepdims=0),
    ],
    "ScatterND": [
        helper.make_node("Slice", ["sizes", "second", "last"], ["part"]),
        helper.make_node("ScatterND", ["part", "place", "third"], ["other"]),
        *sized("ReduceSum", "other", keepdims=0),
    ],
    "Expand": sized("Expand", "height", "second"),
    "Concat": [
        helper.make_node("Concat", ["sizes", "second"], ["more"], axis=0),
        *sized("Gather", "more", "last"),
    ],
    "Where": [helper.make_node("Equal", ["height", "two"], ["is"]), *sized("Where", "is", "two", "height")],
    "Not": [
        helper.make_node("Equal", ["height", "two"], ["is"]),
        helper.make_node("Not", ["is"], ["is not"]),
        *sized("Where", "is not", "two", "height"),
    ],
    "ConstantOfShape": [
        helper.make_node("Slice", ["sizes", "second", "third"], ["part"]),
        helper.make_node("ConstantOfShape", ["part"], ["zeros"]),
        *sized("ReduceSum", "zeros"),
    ],
    "Range": [helper.make_node("Range", ["zero", "height", "two"], ["steps"]), *sized("Gather", "steps", "one")],
    "Gather": sized("Gather", "sizes", "second"),
} | {
    kind: [
        helper.make_node("Cast", ["height"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "half"], ["middle"]),
        *sized(kind, "middle"),
    ]
    for kind in ("Floor", "Ceil")
}
SIZED = {kind: nodes for kind, nodes in SIZED.items() if kind != "ConstantOfShape"}
WHOLE_AND_REAL = {
    "a quotient of negatives": [helper.make_node("Neg", ["height"], ["below"]), *sized("Div", "below", "four")],
    "a remainder of negatives": [
        helper.make_node("Neg", ["height"], ["below"]),
        *sized("Mod", "below", "four", fmod=1),
    ],
    "a negative power": sized("Pow", "height", "minus one"),
    "a quotient of rounded numbers": [
        helper.make_node("Cast", ["height"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Floor", ["real"], ["rounded"]),
        helper.make_node("Cast", ["four"], ["four real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "four real"], ["much"]),
        helper.make_node("Ceil", ["much"], ["above"]),
        *sized("Div", "rounded", "above"),
    ],
}


@pytest.mark.parametrize("kind", [*SIZED, *WHOLE_AND_REAL])
def test_arithmetic_on_sizes(kind: str, tmp_path: Path) -> None:
    """The result is multiplied into the image, so that it shows."""
    nodes = [
        helper.make_node("Shape", ["input"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["height"]),
        *{**SIZED, **WHOLE_AND_REAL}[kind],
        helper.make_node("Cast", ["size"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["input", "factor"], ["output"]),
    ]
    compare(model_of(nodes, NUMBERS, ["item", *IMAGE]), tmp_path, IMAGE)


def test_a_constant_for_each_item(tmp_path: Path) -> None:
    """As a class token is repeated: the number of items is read, and stays free."""
    nodes = [
        helper.make_node("Shape", ["input"], ["items"], start=0, end=1),
        helper.make_node("Concat", ["items", "rest"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Size", ["zeros"], ["count"]),
        helper.make_node(
            "ConstantOfShape", ["four"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])
        ),
        helper.make_node("Equal", ["sizes", "minus"], ["missing"]),
        helper.make_node("Where", ["missing", "ones", "sizes"], ["wanted"]),
        helper.make_node("Expand", ["token", "wanted"], ["tokens"]),
        helper.make_node("Add", ["tokens", "zeros"], ["sum"]),
        helper.make_node("Concat", ["sum", "input"], ["output"], axis=1),
    ]
    constants = {"rest": ints(1, 6, 5), "four": ints(4), "minus": ints(-1, -1, -1, -1), "token": noise(1, 1, 6, 5)}
    compare(model_of(nodes, constants, ["item", *IMAGE]), tmp_path, IMAGE)


def test_how_many_numbers_an_item_has(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Slice", ["input", "zero", "one", "zero"], ["row"]),
        helper.make_node("Size", ["row"], ["count"]),
        helper.make_node("Cast", ["count"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["input", "real"], ["output"]),
    ]
    compare(model_of(nodes, {"zero": ints(0), "one": ints(1)}, ["item", *IMAGE]), tmp_path, IMAGE)


def test_the_list_is_the_table() -> None:
    elsewhere = {"And", "Or", "Not", "Where", "Attention", "ConstantOfShape", "Shape", "Size"}
    elsewhere |= {*PLACES, *RECURRENT, *MACHINE_LEARNING, *CATEGORIES}  # have files of their own
    elsewhere |= {"Einsum", "IsInf", "IsNaN", "Xor", "Acos", "Acosh", "Asin", "Atanh"}
    elsewhere |= {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
    assert {case.kind for case in CASES} | elsewhere == set(FUNCTIONS)
    assert {*SIZED, "ConstantOfShape"} == set(SIZES)


# What is not there.


def test_a_missing_operator_is_named_with_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["input"], ["output"], name="normalise/1")
    onnx.save(model_of([node], {}, ["item", *IMAGE]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"Det \(normalise/1\): an operator that the importer does not know"):
        import_onnx(tmp_path / "m.onnx", IMAGE)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (op("Slice", ints(-1), ints(-9), ints(0), ints(-1)), r"Slice \(output\): picks places across the items"),
        (op("Conv", noise(6, 4, 3, 3, 3), shape=(840,), inner=(4, 5, 6, 7)), "convolves over 3 axes"),
        (op("AveragePool", kernel_shape=[2, 2, 2], shape=(420,), inner=(2, 5, 6, 7)), "pools three axes"),
        (
            op("AveragePool", kernel_shape=[2, 1, 1], dilations=[2, 1, 1], shape=(120,), inner=(1, 6, 5, 4)),
            "three axes, or one with dilations",
        ),
        (
            op("AveragePool", kernel_shape=[3, 1, 1], auto_pad="SAME_UPPER", shape=(120,), inner=(1, 6, 5, 4)),
            "padding on one side",
        ),
        (op("AveragePool", kernel_shape=[1, 1], strides=[3, 1], auto_pad="SAME_UPPER"), "strides beyond its kernel"),
        (op("Conv", noise(6, 4, 1, 1), strides=[4, 1], auto_pad="SAME_UPPER", shape=(4, 8, 1)), "export it with pads"),
        (op("Resize", None, np.asarray([1, 1, 0.5, 0.5], np.float32), mode="linear", antialias=1), "smooths before"),
        (op("Resize", None, floats(1, 2, 1, 1)), "other axes than height and width"),
        (op("Resize", None, floats(1, 1, 2, 2), mode="nearest", nearest_mode="floor"), "half_pixel and floor"),
        (op("Resize", None, floats(1, 1, 1.4, 1), mode="linear"), "to no whole sizes"),
        (op("Resize", floats(1, 1, 0.5, 1), mode="nearest", opset=10), "by the rules of operator set 10"),
        (
            op("Resize", None, None, ints(9, 9), axes=[2, 3], keep_aspect_ratio_policy="not_larger", mode="linear"),
            "keeps the ratio",
        ),
        (
            op(
                *("Resize", None, None, ints(1, 9)),
                axes=[2, 3],
                mode="linear",
                coordinate_transformation_mode="pytorch_half_pixel",
            ),
            "shrinks an axis to one place",
        ),
        (op("MaxPool", kernel_shape=[2, 1], strides=[2, 1], pads=[0, 0, 1, 0], ceil_mode=1, shape=(1, 2, 1)), "uneven"),
        (
            op("AveragePool", kernel_shape=[2, 1], strides=[2, 1], pads=[0, 0, 1, 0], ceil_mode=1, shape=(1, 2, 1)),
            "uneven",
        ),
        (op("MaxPool", kernel_shape=[1, 2], dilations=[1, 2], auto_pad="SAME_UPPER"), "with dilations"),
        (op("ArgMax", axis=1, select_last_index=1), "last of equal maxima"),
        (op("Dropout", np.float32(0.5), np.asarray(True)), "still drops out"),
        (op("BatchNormalization", SCALE, SHIFT, SHIFT, SCALE, training_mode=1), "the batch's own statistics"),
        (op("Gather", ints(0), axis=0), r"across the items of a batch.*example\.contiguous\(\)"),
        (op("Pow", noise(4, 6, 1)), "raises to 24 different powers; at most 8"),
        (op("Add", noise(3, 1)), r"Add \(output\) cannot be computed on a tensor \[.*and a constant"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_supported_is_named(case: Case, words: str, tmp_path: Path) -> None:
    onnx.save(graph_of(case), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=words) as caught:
        import_onnx(tmp_path / "m.onnx", case.shape)
    assert "\n" not in str(caught.value)


def test_a_further_result_that_is_read_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["input", "scale"], ["normal", "mean"]),
        helper.make_node("Clip", ["normal", "mean"], ["output"], name="cut/1"),  # an operand that may be left out
    ]
    onnx.save(model_of(nodes, {"scale": noise(5)}, ["item", *IMAGE]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"Clip \(cut/1\): its 'mean' is a further result"):
        import_onnx(tmp_path / "m.onnx", IMAGE)


def test_real_numbers_are_not_counted_as_whole_ones(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["input"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["height"]),
        helper.make_node("Cast", ["height"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Range", ["half", "real", "half"], ["steps"]),
        helper.make_node("Gather", ["steps", "two"], ["chosen"]),
        helper.make_node("Mul", ["input", "chosen"], ["output"]),
    ]
    onnx.save(model_of(nodes, NUMBERS, ["item", *IMAGE]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"Range \(steps\): counts .* in real numbers"):
        import_onnx(tmp_path / "m.onnx", IMAGE)
