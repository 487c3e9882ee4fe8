"""A QDQ file opens as the float graph that it describes: weights as their bytes say, and pairs as clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic

from guard.errors import ModelError
from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.served import measure_difference
from tests.offline import tiny
from tests.onnx_files import model_of, write_onnx
from tests.reduced_models import write_quantised

MODELS = {"images": (tiny.image_model, tiny.data), "vectors": (tiny.vector_model, tiny.vectors)}
UNSIGNED, SIGNED = QuantType.QUInt8, QuantType.QInt8
SETTINGS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "per channel": {"per_channel": True},
    "unsigned weights": {"activation_type": UNSIGNED, "weight_type": UNSIGNED},
    "symmetric": {"activation_type": SIGNED, "weight_type": SIGNED, "extra_options": {"ActivationSymmetric": True}},
    "weights in pairs of their own": {"per_channel": True, "extra_options": {"AddQDQPairToWeight": True}},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_onnx_runtime_quantised(name: str, setting: str, tmp_path: Path) -> None:
    """Gradients are those of the float original, as far as its weights were rounded."""
    make, draw = MODELS[name]
    images = draw(128, seed=3)[0]
    file = write_quantised(make(), tmp_path / "m.onnx", images, **SETTINGS[setting])
    classifier = open_model(Source(str(file), images.shape[1:]))
    given = torch.from_numpy(images).requires_grad_()
    logits = make()(given)
    (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
    found, gradient = with_gradient(classifier.graph, seed=top_class)(given.detach())
    assert (found - logits).abs().max() < 0.05 * logits.std()
    alike = torch.nn.functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1))
    assert alike.min() > 0.9  # where a rounded weight turns a ReLU on or off
    assert alike.mean() > 0.99
    assert classifier.served is not None
    difference = measure_difference(classifier.served, classifier, images, classifier.spec.input.box)
    assert difference.form == "computes in quantised numbers (QDQ)"
    assert difference.changed <= 0.04
    assert difference.largest is not None
    # without VNNI ONNX Runtime adds pairs of products in 16 bits, and cuts off what does not fit: up to .5 on AVX2
    assert 0 < difference.largest < 1.0


def test_no_pair_before_the_first_layer_is_a_tap(tmp_path: Path) -> None:
    images = tiny.vectors(128, seed=3)[0]
    file = write_quantised(tiny.vector_model(), tmp_path / "m.onnx", images)
    taps = [tap.name for tap in open_model(Source(str(file), (tiny.FEATURES,))).taps]
    assert [name.startswith("/") for name in taps] == [True, True]


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_operators_on_bytes_are_refused_with_the_float_file_as_remedy(form: str, tmp_path: Path) -> None:
    images = tiny.vectors(128, seed=3)[0]
    file = tmp_path / "m.onnx"
    if form == "static":
        write_quantised(tiny.vector_model(), file, images, form=QuantFormat.QOperator)
    else:
        quantize_dynamic(write_onnx(tiny.vector_model(), tmp_path / "f.onnx", (tiny.FEATURES,)), file)
    with pytest.raises(ModelError, match=r"quantised model.*guard the float file that it was made from.*--model"):
        open_model(Source(str(file), (tiny.FEATURES,)))


def opened(nodes: list[onnx.NodeProto], file: Path, *, kind: int = TensorProto.FLOAT, **constants: Any) -> Any:
    model = model_of(
        nodes, {name: np.asarray(value) for name, value in constants.items()}, ["item", 4], kind=kind, opset=21
    )
    onnx.save(model, file)
    return open_model(Source(str(file), (4,), low=(-4.0,), high=(4.0,)) if kind == 1 else Source(str(file), (4,)))


def pair(given: str, made: str, scale: str = "scale", zero: str = "zero") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [given, scale, zero], [f"{made} bytes"]),
        helper.make_node("DequantizeLinear", [f"{made} bytes", scale, zero], [made]),
    ]


MATRIX = np.eye(4, dtype=np.float32)
TENTH = np.float32(0.1)


def wire(values: NDArray[np.float32]) -> torch.Tensor:
    """Unit-space values of the range -4 to 4."""
    return torch.from_numpy((values + 4) / 8)


def test_a_pair_within_is_a_clip_and_the_last_is_nothing(tmp_path: Path) -> None:
    """Scale 0.1 around 128 keeps -12.8 to 12.7; 8 times the input leaves that, and the last pair lets it."""
    nodes = [
        helper.make_node("MatMul", ["input", "eight"], ["wide"]),
        *pair("wide", "kept"),
        helper.make_node("MatMul", ["kept", "eight"], ["wider"]),
        *pair("wider", "output"),
    ]
    classifier = opened(nodes, tmp_path / "m.onnx", eight=MATRIX * 8, scale=TENTH, zero=np.uint8(128))
    given = np.asarray([[-4.0, -1.0, 1.23, 4.0]], np.float32)
    expected = np.clip(given * 8, -12.8, 12.7) * 8
    torch.testing.assert_close(classifier(wire(given)), torch.from_numpy(expected), rtol=1e-5, atol=1e-4)


def test_the_pair_that_reads_the_input_has_a_gradient_at_the_ends_of_the_range(tmp_path: Path) -> None:
    """Numbers around 128 of step 0.0313725 end at 3.984; what rounds down to that is not cut off."""
    step = np.float32(8 / 255) * np.float32(1 - 1e-6)
    nodes = [*pair("input", "kept"), helper.make_node("MatMul", ["kept", "one"], ["output"])]
    classifier = opened(nodes, tmp_path / "m.onnx", one=MATRIX, scale=step, zero=np.uint8(128))
    _, gradient = with_gradient(classifier.graph, seed=top_class)(wire(np.asarray([[0.0, 0.0, 0.0, 3.99]], np.float32)))
    assert gradient[0, 3] == pytest.approx(8)


@pytest.mark.parametrize("by", ["bytes", "a pair", "channels", "blocks"])
def test_weights_are_what_their_bytes_stand_for(by: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 1, (4, 4)).astype(np.float32)
    scale, zero, axis, more = np.asarray(TENTH), np.int8(3), 1, {}
    if by == "channels":
        scale, zero = np.asarray([0.1, 0.2, 0.05, 0.3], np.float32), np.asarray([0, 3, -2, 1], np.int8)
    if by == "blocks":
        scale, zero = np.asarray([[0.1] * 4, [0.2] * 4], np.float32), np.zeros((2, 4), np.int8)
        axis, more = 0, {"block_size": 2}
    step = np.repeat(scale, 2, axis=0) if by == "blocks" else scale
    shift = np.repeat(zero, 2, axis=0) if by == "blocks" else zero
    whole = (np.rint(weights / step) + shift).clip(-128, 127).astype(np.int8)
    product = helper.make_node("MatMul", ["input", "matrix"], ["output"])
    if by == "a pair":
        nodes, constants = [*pair("weights", "matrix"), product], {"weights": weights}
    else:
        back = helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["matrix"], axis=axis, **more)
        nodes, constants = [back, product], {"whole": whole}
    classifier = opened(nodes, tmp_path / "m.onnx", scale=scale, zero=zero, **constants)
    given = np.random.default_rng(1).uniform(-4, 4, (3, 4)).astype(np.float32)
    expected = given @ ((whole.astype(np.float32) - shift) * step)
    torch.testing.assert_close(classifier(wire(given)), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_an_input_of_bytes_that_the_file_dequantises(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["input", "scale", "zero"], ["values"]),
        helper.make_node("MatMul", ["values", "one"], ["output"]),
    ]
    classifier = opened(nodes, tmp_path / "m.onnx", kind=TensorProto.UINT8, one=MATRIX, scale=TENTH, zero=np.uint8(7))
    assert classifier.spec.input.datatype == "UINT8"
    bytes_ = torch.tensor([[0.0, 7.0, 100.0, 255.0]])
    torch.testing.assert_close(classifier(bytes_ / 255), (bytes_ - 7) * 0.1, rtol=1e-5, atol=1e-5)


def test_a_step_that_the_input_decides_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["step"], keepdims=0),
        *pair("input", "kept", "step"),
        helper.make_node("MatMul", ["kept", "one"], ["output"]),
    ]
    with pytest.raises(ModelError, match=r"QuantizeLinear .*quantised model.*guard the float file"):
        opened(nodes, tmp_path / "m.onnx", one=MATRIX, zero=np.uint8(128))
