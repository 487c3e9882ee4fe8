"""Tensors on the wire: what goes in comes out, in both forms; what is refused is in test_bypass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.errors import MalformedRequest
from guard.features import Feature
from guard.manifest import InputSpec
from guard.serve.grpc.decode import decode, encode, parse
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.tensor import Decoded, Form
from tests.serve.guarded import infer_request

SPECS = {
    "FP32": InputSpec("input", "FP32", (2, 3), (0.0,), (1.0,), None),
    "UINT8": InputSpec("input", "UINT8", (2, 3), (0.0,), (255.0,), 255),
}
IMAGES: dict[str, NDArray[Any]] = {
    "FP32": np.asarray([0.1, -2.5, 3e30, 1e-40, -0.0, 1.0], np.float32).reshape(1, 2, 3),
    "UINT8": np.asarray([0, 1, 127, 128, 254, 255], np.uint8).reshape(1, 2, 3),
}


def read(message: ModelInferRequest, spec: InputSpec) -> Decoded:
    """What the guard reads in a message as it travels."""
    return decode(parse(message.SerializeToString()), spec)


@pytest.mark.parametrize("datatype", SPECS)
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_a_tensor_is_read_bit_for_bit(datatype: str, form: Form) -> None:
    decoded = read(infer_request(IMAGES[datatype], form=form), SPECS[datatype])
    assert decoded.form == form
    assert decoded.images.dtype == IMAGES[datatype].dtype
    assert decoded.images.tobytes() == IMAGES[datatype].tobytes()


@pytest.mark.parametrize("datatype", SPECS)
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_encode_changes_the_tensor_and_nothing_else(datatype: str, form: Form) -> None:
    message = infer_request(IMAGES[datatype], form=form, id="7", model_version="2")
    message.parameters["priority"].uint64_param = 3
    message.outputs.add(name="logits").parameters["classification"].int64_param = 2
    before = message.SerializeToString(deterministic=True)
    cleaned = np.ascontiguousarray(IMAGES[datatype][:, ::-1])
    changed = encode(parse(before).message, cleaned, SPECS[datatype], form)
    assert decode(parse(changed), SPECS[datatype]).images.tobytes() == cleaned.tobytes()
    back = encode(parse(changed).message, IMAGES[datatype], SPECS[datatype], form)
    assert ModelInferRequest.FromString(back).SerializeToString(deterministic=True) == before


HALF = InputSpec("input", "FP16", (2, 3), (0.0,), (1.0,), None)
HALVES = np.asarray([0.1, -2.5, 65504, 6e-8, -0.0, 1.0], np.float16).reshape(1, 2, 3)


def half_request(images: NDArray[np.float16]) -> ModelInferRequest:
    """A raw request of float16, which the protocol has no typed contents for."""
    message = ModelInferRequest(raw_input_contents=[images.tobytes()])
    message.inputs.add(name="input", datatype="FP16", shape=images.shape)
    return message


def test_a_tensor_of_half_precision_is_read_and_changed_bit_for_bit() -> None:
    message = half_request(HALVES)
    decoded = read(message, HALF)
    assert (decoded.form, decoded.images.dtype) == ("raw", np.float16)
    assert decoded.images.tobytes() == HALVES.tobytes()
    changed = encode(parse(message.SerializeToString()).message, HALVES[:, ::-1], HALF, "raw")
    assert decode(parse(changed), HALF).images.tobytes() == np.ascontiguousarray(HALVES[:, ::-1]).tobytes()


def test_half_precision_in_typed_contents_is_refused() -> None:
    message = ModelInferRequest()
    tensor = message.inputs.add(name="input", datatype="FP16", shape=HALVES.shape)
    tensor.contents.fp32_contents.extend(HALVES.ravel().tolist())
    with pytest.raises(
        MalformedRequest, match="'input' is FP16, which the protocol has no typed contents for; send it"
    ):
        read(message, HALF)


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_a_channel_last_tensor_has_the_shape_of_the_wire(form: str) -> None:
    spec = InputSpec("input", "UINT8", (3, 4, 5), (0.0,), (255.0,), 255, "NHWC")
    images = np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert np.array_equal(read(infer_request(images, form=form), spec).images, images)
    with pytest.raises(MalformedRequest, match=r"\[2, 3, 4, 5\].*\[item, 4, 5, 3\]"):
        read(infer_request(images.transpose(0, 3, 1, 2), form=form), spec)


def test_an_element_that_the_datatype_cannot_hold_is_refused() -> None:
    message = infer_request(IMAGES["UINT8"], form="typed")
    message.inputs[0].contents.uint_contents[3] = 256
    with pytest.raises(MalformedRequest, match="256"):
        read(message, SPECS["UINT8"])


def test_messages_name_what_came_and_what_was_wanted() -> None:
    message = infer_request(IMAGES["FP32"])
    message.inputs[0].shape[:] = [1, 3, 2]
    with pytest.raises(MalformedRequest, match=r"\[1, 3, 2\].*\[item, 2, 3\]"):
        read(message, SPECS["FP32"])


def test_parameters_that_every_client_sends_are_no_obstacle() -> None:
    message = infer_request(IMAGES["FP32"])
    message.parameters["content_type"].string_param = "np"
    message.parameters["sequence_id"].int64_param = 4
    message.inputs[0].parameters["content_type"].string_param = "np"
    message.inputs[0].parameters["binary_data_size"].int64_param = 24
    message.inputs[0].contents.SetInParent()  # present, and empty
    assert read(message, SPECS["FP32"]).form == "raw"


def test_parse_refuses_what_is_no_request() -> None:
    with pytest.raises(MalformedRequest):
        parse(b"\xff")
    whole = infer_request(IMAGES["FP32"])
    parsed = parse(whole.SerializeToString())
    assert [bytes(entry) for entry in parsed.raw] == list(whole.raw_input_contents)
    whole.ClearField("raw_input_contents")
    assert parsed.message == whole
    assert parse(b"").message == ModelInferRequest()


def test_a_category_that_the_model_does_not_have_is_refused() -> None:
    trade = Feature("trade", "categorical", 0, 2, categories=(0, 1, 2))
    spec = InputSpec("input", "FP32", (2,), (0.0, 0.0), (1.0, 2.0), None, "NC", (Feature("a", "numeric", 0, 1), trade))
    sound = np.asarray([[0.5, 2], [7.0, 0]], np.float32)
    assert np.array_equal(read(infer_request(sound), spec).images, sound)
    for code in (3, -1, 0.5):
        with pytest.raises(MalformedRequest, match=rf"item 1 has {code:g} for 'trade'; wanted one of 0, 1, 2"):
            read(infer_request(np.asarray([[0.5, 2], [0.5, code]], np.float32)), spec)
