"""A real bundle, small enough to make anew in a test: linear classifier, two detectors, a repair. No torch.

    screen:     logits, and `brightness` (the items' mean)
    interpret:  logits, and `roughness` (mean absolute difference of neighbouring columns)
    repair:     `steps`: rounds to eighths; its second network has a matrix near the classifier's

With `explains`, `interpret` also gives the gradient of the predicted class's logit, and the opinions of the classifier
on rounded items and of that second network.

Ordinary items are noise around 0.5. A bright item is rejected by `screen`, a striped one by `interpret`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from guard.bundle import WEIGHTS, Bundle, write_bundle
from guard.calibration import Band, Calibration
from guard.cascade import cascade_risk, jitter
from guard.fusion import unfitted
from guard.manifest import DetectorSpec, InputSpec, Manifest, ModelSpec, NeedSpec, OutputSpec, ProgramSpec, RepairSpec
from guard.runtime import Runtime

SHAPE = (1, 4, 4)
CLASSES = 3
ITEMS = 999
REJECT_RATE, FLAG_RATE = 0.01, 0.05
MODEL_NAME = "tiny"
OPSET = 20
EXPLAINING = ("denoised: steps(8)", "second: tiny")
OPINIONS = ("cleaned once", "cleaned twice", "second, cleaned once")


def weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The classifier's matrix [feature, class] and bias [class]."""
    generator = np.random.default_rng(7)
    return generator.standard_normal((16, CLASSES)).astype(np.float32), np.zeros(CLASSES, dtype=np.float32)


def clean(items: int, seed: int = 1) -> NDArray[np.float32]:
    """Ordinary items [item, channel, height, width]."""
    return np.random.default_rng(seed).normal(0.5, 0.1, (items, *SHAPE)).clip(0, 1).astype(np.float32)


def ordinary(items: int = 1, seed: int = 1) -> NDArray[np.float32]:
    """Items that no promise could ever touch: the calm middle of every detector."""
    pattern = np.asarray([0.45, 0.55, 0.45, 0.55], dtype=np.float32)
    images = np.broadcast_to(pattern, (items, *SHAPE)).copy()
    images += np.random.default_rng(seed).uniform(-0.01, 0.01, images.shape).astype(np.float32)
    return images.astype(np.float32)


def bright(items: int = 1) -> NDArray[np.float32]:
    """Rejected by `screen`."""
    return np.full((items, *SHAPE), 0.98, dtype=np.float32) + ordinary(items, seed=3) * np.float32(0.01)


def striped(items: int = 1) -> NDArray[np.float32]:
    """Rejected by `interpret`."""
    images = ordinary(items)
    images[..., ::2], images[..., 1::2] = 0.02, 0.98
    return images


def graph(
    name: str, nodes: list[Any], constants: dict[str, NDArray[Any]], outputs: dict[str, list[Any]], datatype: int
) -> bytes:
    types = {"cleaned": datatype, "classes": TensorProto.INT64}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("input", datatype, ["item", *SHAPE])],
            [
                helper.make_tensor_value_info(output, types.get(output, TensorProto.FLOAT), shape)
                for output, shape in outputs.items()
            ],
            [numpy_helper.from_array(array, key) for key, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def forward(datatype: int) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes from `input` to `unit` (in [0, 1]) and `logits`."""
    matrix, bias = weights()
    scale = 255.0 if datatype == TensorProto.UINT8 else 1.0
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]),
    ]
    return nodes, {"matrix": matrix, "bias": bias, "scale": np.asarray(scale, dtype=np.float32)}


def classifier(datatype: int = TensorProto.FLOAT) -> bytes:
    """The protected model alone, for a model server."""
    nodes, constants = forward(datatype)
    return graph("tiny", nodes, constants, {"logits": ["item", CLASSES]}, datatype)


def screen(datatype: int) -> bytes:
    nodes, constants = forward(datatype)
    nodes.append(helper.make_node("ReduceMean", ["flat", "axis"], ["scores"], keepdims=1))
    constants["axis"] = np.asarray([1], dtype=np.int64)
    return graph("screen", nodes, constants, {"logits": ["item", CLASSES], "scores": ["item", 1]}, datatype)


def explaining(datatype: int) -> tuple[list[Any], dict[str, NDArray[Any]], dict[str, list[Any]]]:
    """Nodes, constants and outputs of what explains a verdict."""
    nodes = [
        helper.make_node("ArgMax", ["logits"], ["class"], axis=1, keepdims=0),
        helper.make_node("Gather", ["rows", "class"], ["row"], axis=0),
        helper.make_node("Reshape", ["row", "item_shape"], ["gradient"]),
        helper.make_node("Mul", ["flat", "eight"], ["many"]),
        helper.make_node("Round", ["many"], ["whole"]),
        helper.make_node("Div", ["whole", "eight"], ["rounded"]),
        helper.make_node("MatMul", ["rounded", "matrix"], ["denoised"]),
        helper.make_node("MatMul", ["flat", "second"], ["seen"]),
        helper.make_node("Unsqueeze", ["denoised", "one"], ["denoised_opinion"]),
        helper.make_node("Unsqueeze", ["seen", "one"], ["seen_opinion"]),
        helper.make_node("Concat", ["denoised_opinion", "seen_opinion"], ["opinions"], axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "rows": np.ascontiguousarray(weights()[0].T),
        "item_shape": np.asarray([-1, *SHAPE], dtype=np.int64),
        "eight": np.asarray(8.0, dtype=np.float32),
        "second": second_matrix(),
    }
    return nodes, constants, {"gradient": ["item", *SHAPE], "opinions": ["item", len(EXPLAINING), CLASSES]}


def interpret(datatype: int, *, explains: bool = False) -> bytes:
    nodes, constants = forward(datatype)
    nodes += [
        helper.make_node("Slice", ["unit", "zero", "three", "last"], ["left"]),
        helper.make_node("Slice", ["unit", "one", "four", "last"], ["right"]),
        helper.make_node("Sub", ["right", "left"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["size"]),
        helper.make_node("Flatten", ["size"], ["sizes"], axis=1),
        helper.make_node("ReduceMean", ["sizes", "one"], ["scores"], keepdims=1),
    ]
    constants |= {
        key: np.asarray([value], dtype=np.int64)
        for key, value in {"zero": 0, "one": 1, "three": 3, "four": 4, "last": 3}.items()
    }
    outputs: dict[str, list[Any]] = {"logits": ["item", CLASSES], "scores": ["item", 1]}
    if explains:
        more = explaining(datatype)
        nodes, constants, outputs = nodes + more[0], constants | more[1], outputs | more[2]
    return graph("interpret", nodes, constants, outputs, datatype)


def second_matrix() -> NDArray[np.float32]:
    """The matrix of the repair's second network [feature, class]."""
    return weights()[0] + np.random.default_rng(8).normal(0, 0.6, (16, CLASSES)).astype(np.float32)


def steps(datatype: int) -> bytes:
    """Rounding has done all that it does after the first time, so that cleaned twice is cleaned once."""
    levels = 8.0 if datatype == TensorProto.FLOAT else 8.0 / 255.0
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "levels"], ["many"]),
        helper.make_node("Round", ["many"], ["whole"]),
        helper.make_node("Div", ["whole", "levels"], ["back"]),
        helper.make_node("Cast", ["back"], ["cleaned"], to=datatype),
        helper.make_node("Cast", ["cleaned"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["again", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
    ]
    for name in ("matrix", "second"):
        nodes += [
            helper.make_node("MatMul", ["flat", name], [f"{name}_logits"]),
            helper.make_node("ArgMax", [f"{name}_logits"], [f"{name}_class"], axis=1, keepdims=1),
        ]
    nodes.append(helper.make_node("Concat", ["matrix_class", "matrix_class", "second_class"], ["classes"], axis=1))
    constants = {
        "levels": np.asarray(levels, dtype=np.float32),
        "scale": np.asarray(1.0 if datatype == TensorProto.FLOAT else 255.0, dtype=np.float32),
        "matrix": weights()[0],
        "second": second_matrix(),
    }
    return graph("steps", nodes, constants, {"cleaned": ["item", *SHAPE], "classes": ["item", len(OPINIONS)]}, datatype)


def moved_out(content: bytes) -> bytes:
    """The same graph, with the scale of its inputs in a file beside it: ONNX Runtime makes no copy of that one."""
    model = onnx.ModelProto.FromString(content)
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            set_external_data(tensor, WEIGHTS, offset=0, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    return model.SerializeToString()


def npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def as_wire(images: NDArray[np.float32], datatype: str) -> NDArray[Any]:
    return np.rint(images * 255).astype(np.uint8) if datatype == "UINT8" else images


def python_scores(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the programs compute, in numpy: [item, detector]."""
    brightness = images.reshape(len(images), -1).mean(axis=1)
    roughness = np.abs(np.diff(images, axis=3)).reshape(len(images), -1).mean(axis=1)
    return np.stack([brightness, roughness], axis=1).astype(np.float64)


def make(
    path: Path,
    *,
    datatype: str = "FP32",
    version: str = "",
    reject_rate: float = REJECT_RATE,
    output_kind: str = "logits",
    provenance: Mapping[str, Any] | None = None,
    outside: bool = False,
    explains: bool = False,
) -> Bundle:
    """Write the bundle at `path`; what scales inputs lies `outside` of its graphs, in weights.bin, if so wanted.

    One that `explains` gives gradient and opinions.
    """
    code = TensorProto.FLOAT if datatype == "FP32" else TensorProto.UINT8
    fit, ranks = clean(600, seed=2), clean(ITEMS, seed=3)
    if datatype == "UINT8":
        fit, ranks = (as_wire(images, datatype).astype(np.float32) / np.float32(255) for images in (fit, ranks))
    fusions = (unfitted(python_scores(fit)[:, :1]), unfitted(python_scores(fit)))
    band = Band(high=float(np.quantile(fusions[0].risk(python_scores(fit)[:, :1]), 0.9995)))
    scores = python_scores(ranks)
    screened, full = fusions[0].risk(scores[:, :1]), fusions[1].risk(scores)
    risks = np.where(screened > band.high, cascade_risk(2, screened), cascade_risk(1, full)) + jitter(
        as_wire(ranks, datatype)
    )
    calibration = Calibration(("brightness", "roughness"), (1, 1), fusions, (band,), risks, scores)
    low, high = ((0.0,), (255.0,)) if datatype == "UINT8" else ((0.0,), (1.0,))
    manifest = Manifest(
        model=ModelSpec(
            MODEL_NAME,
            version,
            "f" * 64,
            InputSpec("input", datatype, SHAPE, low, high, 255),
            OutputSpec("logits", output_kind, CLASSES),
        ),
        programs=(
            ProgramSpec("screen", "screen.onnx", ("brightness",), rows=0, backwards=0, opset=OPSET),
            ProgramSpec(
                "interpret", "interpret.onnx", ("roughness",), 1, 0, OPSET, opinions=EXPLAINING if explains else ()
            ),
        ),
        detectors=(
            DetectorSpec("brightness", "brightness()", (NeedSpec("image", "plain"),)),
            DetectorSpec("roughness", "roughness()", (NeedSpec("image", "plain"),)),
        ),
        repairs=(RepairSpec("steps", "steps.onnx", "steps(8)", OPINIONS),),
        reject_rate=reject_rate,
        flag_rate=FLAG_RATE,
        recipe={},
        seed=0,
        made_by={"guard": "tests"},
        provenance=provenance or {},
    )
    files = {
        "screen.onnx": screen(code),
        "interpret.onnx": interpret(code, explains=explains),
        "steps.onnx": steps(code),
        "calibration.npz": npz(**calibration.to_arrays()),
    }
    if outside:
        files = {name: moved_out(content) if name.endswith(".onnx") else content for name, content in files.items()}
        files[WEIGHTS] = np.float32(255.0 if datatype == "UINT8" else 1.0).tobytes()
    samples = as_wire(np.concatenate([clean(6, seed=5), bright(1), striped(1)]), datatype)
    blank = npz(
        images=samples, logits=np.zeros((8, CLASSES), np.float32), scores=np.zeros((8, 2)), p_values=np.zeros(8)
    )
    draft = write_bundle(path.with_name(path.name + ".draft"), manifest, {**files, "samples.npz": blank})
    readings = Runtime.open(draft, threads=1).read(samples, complete=True)
    filled = npz(images=samples, logits=readings.logits, scores=readings.scores, p_values=readings.p_value)
    return write_bundle(path, manifest, {**files, "samples.npz": filled})


def flagged(bundle: Bundle, *, stable: bool = True) -> NDArray[Any]:
    """One item [1, ...] whose p-value lies between the two rates, and whose repaired answer is stable or is not."""
    runtime = Runtime.open(bundle, threads=1)
    images = as_wire(clean(2000, seed=11), runtime.spec.datatype)
    p = runtime.read(images).p_value
    sought = runtime.repair(images, "steps").stable == stable
    chosen = np.flatnonzero((p > 2 * bundle.manifest.reject_rate) & (p < 0.8 * FLAG_RATE) & sought)
    return images[chosen[:1]]
