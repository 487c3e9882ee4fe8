"""Any tensor of any input is read bit for bit, in both forms; any fault in its request is refused as our own error."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from guard.errors import MalformedRequest, RequestError, Uninspectable
from guard.manifest import DATATYPES, InputSpec
from guard.serve.grpc.decode import TYPED_FIELD, decode, encode, parse
from guard.serve.grpc.scan import embedded
from guard.serve.grpc.wire.guard_pb2 import InspectRequest
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.tensor import DTYPES, Form
from tests.serve.reference_reading import TYPED, judge
from tests.serve.wire_fields import LENGTH, Field, encoded
from tests.serve.wire_mutations import NAMES, mutated

EXAMPLES = 100
MAX_TEXT = 12  # characters
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_TEXT)
RANDOM = st.randoms(note_method_calls=False, use_true_random=False)


@st.composite
def specs(draw: Any) -> InputSpec:
    """An input that a bundle can have: of any name, datatype, shape and layout."""
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=4))
    layout = draw(st.sampled_from({1: ["NC"], 2: ["NCT", "NTC"], 3: ["NCHW", "NHWC"]}[len(shape)]))
    return InputSpec(draw(TEXT), draw(st.sampled_from(sorted(DATATYPES))), shape, (0.0,), (1.0,), None, layout)


def tensors(spec: InputSpec) -> st.SearchStrategy[NDArray[Any]]:
    """Any tensor that the input can be given, of one to four items."""
    shapes = st.integers(1, 4).map(lambda items: (items, *spec.wire_shape))
    elements = {"allow_nan": False, "allow_infinity": False} if spec.dtype.kind == "f" else {}
    return npst.arrays(spec.dtype, shapes, elements=elements)


def harmless(draw: Any, message: ModelInferRequest) -> None:
    """What clients add that changes nothing of the tensor."""
    message.model_name, message.model_version, message.id = draw(TEXT), draw(TEXT), draw(TEXT)
    for asked in draw(st.lists(TEXT, max_size=2)):
        message.outputs.add(name=asked).parameters["classification"].int64_param = 1
    for parameters in (message.parameters, message.inputs[0].parameters):
        if draw(st.booleans()):
            parameters["content_type"].string_param = "np"
        if draw(st.booleans()):
            parameters[draw(TEXT.map("x-{}".format))].int64_param = draw(st.integers(-(2**63), 2**63 - 1))


def filled(message: ModelInferRequest, images: NDArray[Any], spec: InputSpec, form: Form) -> None:
    if form == "raw":
        message.raw_input_contents.append(images.tobytes())
    else:
        getattr(message.inputs[0].contents, TYPED_FIELD[spec.datatype]).extend(images.ravel().tolist())


@st.composite
def requests(draw: Any) -> tuple[ModelInferRequest, NDArray[Any], InputSpec, Form]:
    spec = draw(specs())
    form = draw(st.sampled_from(["raw", "typed"] if spec.datatype in TYPED_FIELD else ["raw"]))
    images = draw(tensors(spec))
    message = ModelInferRequest()
    message.inputs.add(name=spec.name, datatype=spec.datatype, shape=images.shape)
    harmless(draw, message)
    filled(message, images, spec, form)
    return message, images, spec, form


@settings(max_examples=2 * EXAMPLES)
@given(requests(), st.data())
def test_a_tensor_is_read_bit_for_bit_and_written_back(drawn: Any, data: st.DataObject) -> None:
    message, images, spec, form = drawn
    wire = message.SerializeToString()
    decoded = decode(parse(wire), spec, max_items=len(images))
    assert decoded.form == form
    assert decoded.images.dtype == images.dtype
    assert decoded.images.shape == images.shape
    assert decoded.images.tobytes() == images.tobytes()
    other = data.draw(tensors(spec).filter(lambda found: found.shape == images.shape) | st.just(images[::-1].copy()))
    changed = encode(parse(wire).message, other, spec, form)
    assert decode(parse(changed), spec).images.tobytes() == other.tobytes()
    back = ModelInferRequest.FromString(encode(parse(changed).message, images, spec, form))
    assert back == message
    with pytest.raises(MalformedRequest, match=f"a request of {len(images)} items"):
        decode(parse(wire), spec, max_items=len(images) - 1)


# One fault in a request that is well otherwise.

Fault = Callable[[Any, ModelInferRequest, InputSpec], None]


def other_size(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    shape = message.inputs[0].shape
    place = draw(st.integers(0, len(shape) - 1))
    shape[place] = draw(st.integers(-(2**63), 2**63 - 1).filter(lambda size: size != shape[place]))


def other_rank(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    shape = message.inputs[0].shape
    if draw(st.booleans()):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    else:
        del shape[draw(st.integers(0, len(shape) - 1))]


def other_length(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    if message.raw_input_contents:
        raw = message.raw_input_contents[0]
        message.raw_input_contents[0] = draw(st.sampled_from([raw[:-1], raw + b"\0", raw * 2, b""]))
        return
    values = getattr(message.inputs[0].contents, TYPED_FIELD[spec.datatype])
    if draw(st.booleans()):
        values.append(1)
    else:
        del values[draw(st.integers(0, len(values) - 1)) :]


def other_datatype(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    names = [*sorted(DTYPES), "BF16", "", spec.datatype.lower()]
    message.inputs[0].datatype = draw((st.sampled_from(names) | TEXT).filter(lambda found: found != spec.datatype))


def other_name(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    message.inputs[0].name = draw(TEXT.filter(lambda name: name != spec.name))


def second_input(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    message.inputs.add().CopyFrom(message.inputs[0])


def both_forms(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    if message.raw_input_contents:
        getattr(message.inputs[0].contents, draw(st.sampled_from(["fp32_contents", "uint_contents"]))).append(1)
    else:
        message.raw_input_contents.append(draw(st.binary(max_size=8)))


def another_typed_field(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    filled_ = message.inputs[0].contents.ListFields()
    names = sorted({*TYPED_FIELD.values(), "bytes_contents"} - {field.name for field, _ in filled_})
    name = draw(st.sampled_from(names))
    getattr(message.inputs[0].contents, name).append(b"\1" if name == "bytes_contents" else 1)


def no_value_of_it(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    """A value that is no number, or that the datatype cannot hold; of bytes every one is a number."""
    wrong = draw(st.sampled_from([np.nan, np.inf, -np.inf])) if spec.dtype.kind == "f" else 256
    if message.raw_input_contents and spec.dtype.kind != "f":
        message.raw_input_contents[0] += b"\0"
    elif message.raw_input_contents:
        values = np.frombuffer(message.raw_input_contents[0], spec.dtype).copy()
        values[draw(st.integers(0, len(values) - 1))] = wrong
        message.raw_input_contents[0] = values.tobytes()
    else:
        values = getattr(message.inputs[0].contents, TYPED_FIELD[spec.datatype])
        values[draw(st.integers(0, len(values) - 1))] = wrong


def unknown_field(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    number = draw(st.integers(8, 2**29 - 1))
    extra = encoded([Field(number, LENGTH, draw(st.binary(max_size=4)))])
    part = draw(st.sampled_from([message, message.inputs[0], message.inputs[0].parameters["x"]]))
    part.MergeFromString(extra)


def shared_memory(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    message.inputs[0].parameters[f"shared_memory_{draw(TEXT)}"].string_param = "region"


def encoded_content(draw: Any, message: ModelInferRequest, spec: InputSpec) -> None:
    where = draw(st.sampled_from([message, message.inputs[0]])).parameters["content_type"]
    if draw(st.booleans()):
        where.string_param = draw(TEXT.filter(lambda text: text != "np"))
    else:
        where.bool_param = True


FAULTS: dict[Fault, tuple[type[RequestError], ...]] = {
    other_size: (MalformedRequest,),
    other_rank: (MalformedRequest,),
    other_length: (MalformedRequest,),
    other_datatype: (MalformedRequest, Uninspectable),  # of BYTES
    other_name: (MalformedRequest,),
    second_input: (MalformedRequest,),
    both_forms: (MalformedRequest,),
    another_typed_field: (MalformedRequest,),
    no_value_of_it: (MalformedRequest,),
    unknown_field: (MalformedRequest,),
    shared_memory: (Uninspectable,),
    encoded_content: (Uninspectable,),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_request_with_one_fault_is_refused(fault: Fault) -> None:
    @settings(max_examples=EXAMPLES // 5)
    @given(requests(), st.data())
    def law(drawn: Any, data: st.DataObject) -> None:
        message, _, spec, _ = drawn
        fault(data.draw, message, spec)
        with pytest.raises(FAULTS[fault]):
            decode(parse(message.SerializeToString()), spec)

    law()


# What no client writes, for any input; on a few inputs `test_fuzz_messages` does it at length.


@settings(max_examples=2 * EXAMPLES)
@given(specs(), st.lists(st.sampled_from(NAMES), max_size=3), RANDOM)
def test_what_is_accepted_is_what_protobuf_and_numpy_read(spec: InputSpec, names: list[str], rng: Random) -> None:
    wire = mutated(spec, names, rng)
    found = judge(wire, spec)
    assert found.fault is None, (found, spec, wire.hex())


@settings(max_examples=EXAMPLES)
@given(specs(), st.binary(max_size=40))
def test_any_bytes_are_read_alike_or_refused(spec: InputSpec, wire: bytes) -> None:
    assert judge(wire, spec).fault is None


@settings(max_examples=EXAMPLES)
@given(
    st.binary(max_size=30)
    | st.lists(st.binary(max_size=4)).map(lambda parts: encoded([Field(1, LENGTH, p) for p in parts]))
)
def test_a_request_inside_another_message_is_the_one_that_protobuf_reads(wire: bytes) -> None:
    try:
        inside = embedded(wire)
    except MalformedRequest:
        return
    readings = []
    for kind, serialized in ((InspectRequest, wire), (ModelInferRequest, inside)):
        try:
            readings.append(kind.FromString(serialized))
        except DecodeError:
            readings.append(None)
    assert (readings[0] and readings[0].request) == readings[1]


def test_every_datatype_of_an_input_is_one_that_the_reference_reads() -> None:
    assert {*TYPED, "FP16"} == set(DATATYPES), "FP16 has no field of its own: raw contents alone"
    assert "FP16" not in TYPED_FIELD
