"""Tensors on the wire: what goes in comes out, in both forms; what is refused is in test_bypass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.bundle import InputSpec, OutputSpec
from guard.errors import MalformedRequest
from guard.serve.decode import TYPED_FIELD, Decoded, Form, decode, encode, parse, prediction
from guard.serve.wire.inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.serve.guarded import infer_request

SPECS = {
    "FP32": InputSpec("input", "FP32", (2, 3), (0.0,), (1.0,), None),
    "UINT8": InputSpec("input", "UINT8", (2, 3), (0.0,), (255.0,), 255),
}
IMAGES: dict[str, NDArray[Any]] = {
    "FP32": np.asarray([0.1, -2.5, 3e30, 1e-40, -0.0, 1.0], np.float32).reshape(1, 2, 3),
    "UINT8": np.asarray([0, 1, 127, 128, 254, 255], np.uint8).reshape(1, 2, 3),
}
OUTPUT = OutputSpec("logits", "logits", 3)


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


def answer(array: NDArray[Any], datatype: str, *, raw: bool, name: str = "logits") -> bytes:
    message = ModelInferResponse()
    message.outputs.add(name="other", datatype="INT64", shape=[1]).contents.int64_contents.append(9)
    if raw:
        message.raw_output_contents.append(np.int64(9).tobytes())
        message.raw_output_contents.append(array.tobytes())
    tensor = message.outputs.add(name=name, datatype=datatype, shape=array.shape)
    if not raw:
        getattr(tensor.contents, TYPED_FIELD[datatype]).extend(array.ravel().tolist())
    return message.SerializeToString()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_the_upstreams_prediction_is_read_from_logits(*, raw: bool, datatype: str) -> None:
    array = np.asarray([[0, 2, 1], [5, 4, 3]], dtype={"FP32": np.float32, "FP64": np.float64}[datatype])
    found = prediction(answer(array, datatype, raw=raw), OUTPUT, 2)
    assert found is not None
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("raw", [True, False])
def test_the_upstreams_prediction_is_read_from_labels(*, raw: bool) -> None:
    found = prediction(answer(np.asarray([2, 0], np.int64), "INT64", raw=raw), OutputSpec("logits", "label", 3), 2)
    assert found is not None
    assert found.tolist() == [2, 0]


ONE_NUMBER = {
    "probabilities": ([0.2, 0.5, 0.51, 1.0], [0, 0, 1, 1]),
    "logits": ([-3.0, 0.0, 0.2, 7.0], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", ONE_NUMBER)
def test_one_number_an_item_names_one_of_two_classes(
    *, kind: str, shape: tuple[int, ...], datatype: str, raw: bool
) -> None:
    values, wanted = ONE_NUMBER[kind]
    array = np.asarray(values, dtype={"FP32": np.float32, "FP64": np.float64}[datatype]).reshape(shape)
    found = prediction(answer(array, datatype, raw=raw), OutputSpec("logits", kind, 2, single=True), 4)
    assert found is not None
    assert found.tolist() == wanted


@pytest.mark.parametrize("values", [[[0.1, 0.9]], [[np.nan]]], ids=["two numbers", "no number"])
def test_what_is_not_one_number_names_nothing(values: list[list[float]]) -> None:
    array = np.asarray(values, np.float32)
    assert prediction(answer(array, "FP32", raw=True), OutputSpec("logits", "logits", 2, single=True), 1) is None


def test_half_precision_is_read_too() -> None:
    found = prediction(answer(np.asarray([[0, 2, 1]], np.float16), "FP16", raw=True), OUTPUT, 1)
    assert found is not None
    assert found.tolist() == [1]


@pytest.mark.parametrize(
    "response",
    [
        b"\xff\xff",
        b"",
        answer(np.zeros((1, 3), np.float32), "FP32", raw=True, name="elsewhere"),
        answer(np.zeros((1, 4), np.float32), "FP32", raw=True),
        answer(np.zeros((1, 3), np.float32), "FP64", raw=True),
        answer(np.zeros((2, 3), np.float32), "FP32", raw=True),
        answer(np.zeros((1, 3), np.float32), "BF16", raw=True),
    ],
    ids=[
        "no protobuf",
        "empty",
        "no such output",
        "other classes",
        "size against shape",
        "other items",
        "unreadable type",
    ],
)
def test_an_answer_that_does_not_show_the_prediction_is_not_compared(response: bytes) -> None:
    assert prediction(response, OUTPUT, 1) is None


def test_parse_refuses_what_is_no_request() -> None:
    with pytest.raises(MalformedRequest):
        parse(b"\xff")
    whole = infer_request(IMAGES["FP32"])
    parsed = parse(whole.SerializeToString())
    assert [bytes(entry) for entry in parsed.raw] == list(whole.raw_input_contents)
    whole.ClearField("raw_input_contents")
    assert parsed.message == whole
    assert parse(b"").message == ModelInferRequest()
