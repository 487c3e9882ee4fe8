"""Any tensor of any input is read bit for bit from a REST request, in both forms; any fault in it is refused."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from guard.errors import GuardError, MalformedRequest, TooLarge, Uninspectable
from guard.manifest import DATATYPES, InputSpec
from guard.serve.rest.decode import check_model, decode, encode, json_length, parse
from guard.serve.rest.packing import coding_of, packed, unpacked

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPEC = InputSpec("input", "FP32", (1, 2, 3), (0.0,), (1.0,), None)
IMAGES = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3) / 8


@st.composite
def specs(draw: Any) -> InputSpec:
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=4))
    layout = draw(st.sampled_from({1: ["NC"], 2: ["NCT", "NTC"], 3: ["NCHW", "NHWC"]}[len(shape)]))
    return InputSpec(draw(TEXT), draw(st.sampled_from(sorted(DATATYPES))), shape, (0.0,), (1.0,), None, layout)


@st.composite
def requests(draw: Any) -> tuple[bytes, int | None, NDArray[Any], InputSpec, str]:
    """A correct request: its body, the length of its JSON, its tensor, and how that travels."""
    spec = draw(specs())
    shape = (draw(st.integers(1, 4)), *spec.wire_shape)
    elements = {"allow_nan": False, "allow_infinity": False} if spec.dtype.kind == "f" else {}
    images = draw(npst.arrays(spec.dtype, shape, elements=elements))
    form = draw(st.sampled_from(["flat", "nested", "raw"]))
    tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(shape)}
    tensor["parameters"] = {"content_type": "np", "x-mine": draw(st.integers() | TEXT | st.booleans())}
    document: dict[str, Any] = {"id": draw(TEXT), "inputs": [tensor], "outputs": [{"name": draw(TEXT)}]}
    if form == "raw":
        tensor["parameters"]["binary_data_size"] = images.nbytes
    else:
        tensor["data"] = (images.ravel() if form == "flat" else images).tolist()
    if draw(st.booleans()):
        document = dict(reversed(document.items()))
        document["inputs"] = [dict(reversed(tensor.items()))]
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))).encode()
    return text + (images.tobytes() if form == "raw" else b""), len(text) if form == "raw" else None, images, spec, form


@settings(max_examples=200)
@given(requests())
def test_any_tensor_is_read_bit_for_bit(drawn: tuple[bytes, int | None, NDArray[Any], InputSpec, str]) -> None:
    body, length, images, spec, form = drawn
    found = decode(parse(body, length), spec)
    assert found.images.dtype == images.dtype
    assert found.images.tobytes() == images.tobytes() or (found.images == images).all()
    assert found.form == ("raw" if form == "raw" else "typed")


@settings(max_examples=200)
@given(requests(), st.data())
def test_a_repair_changes_the_tensor_and_no_other_byte(
    drawn: tuple[bytes, int | None, NDArray[Any], InputSpec, str], data: Any
) -> None:
    body, length, images, spec, form = drawn
    request = parse(body, length)
    other = images[::-1].copy()
    changed = encode(request, other, decode(request, spec).form)
    again = parse(changed, length)
    assert (decode(again, spec).images == other).all()
    if form == "raw":
        assert changed[:length] == body[:length]
    else:
        numbers = request.document["inputs"][0]["data"]
        assert again.text[: numbers.start] == request.text[: numbers.start]
        assert again.text.endswith(request.text[numbers.end :])
        assert again.document["inputs"][0]["data"].is_flat == numbers.is_flat


@settings(max_examples=400)
@given(requests(), st.data())
def test_a_changed_byte_is_read_as_json_reads_it_or_refused(
    drawn: tuple[bytes, int | None, NDArray[Any], InputSpec, str], data: Any
) -> None:
    """The tensor is what Python's own parser finds in the same bytes, or the request is refused by an error of ours."""
    body, length, _, spec, _ = drawn
    end = len(body) if length is None else length
    place = data.draw(st.integers(0, end - 1))
    changed = body[:place] + data.draw(st.binary(max_size=2)) + body[place + 1 :]
    length = None if length is None else length + len(changed) - len(body)
    try:
        found = decode(parse(changed, length), spec)
    except GuardError:
        return
    tensor = json.loads(changed[:length])["inputs"][0]
    if length is None:
        wanted = np.array(tensor["data"], dtype=np.float64).astype(spec.dtype).reshape(tensor["shape"])
    else:
        wanted = np.frombuffer(changed[length:], spec.dtype).reshape(tensor["shape"])
    assert (found.images == wanted).all()


def document(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "shape": [2, 1, 2, 3], "datatype": "FP32", "data": IMAGES.ravel().tolist()}
    tensor = {key: value for key, value in {**tensor, **changes}.items() if value is not ...}
    return {"inputs": [tensor]}


MALFORMED: dict[str, Any] = {
    "no document": 7,
    "a list": [],
    "no inputs": {},
    "inputs null": {"inputs": None},
    "inputs no list": {"inputs": {"name": "input"}},
    "an input that is no object": {"inputs": ["input"]},
    "two inputs": {"inputs": [*document()["inputs"], *document()["inputs"]]},
    "another input": document(name="other"),
    "no name": document(name=...),
    "a name that is none": document(name=["input"]),
    "a key of nobody": {**document(), "raw_input_contents": ["AAAA"]},
    "a key in other letters": {**document(), "Inputs": []},
    "a key of nobody in the input": document(contents={"fp32_contents": [1.0]}),
    "an id that is no text": {**document(), "id": 7},
    "outputs that are no list": {**document(), "outputs": "logits"},
    "parameters that are no object": {**document(), "parameters": [1]},
    "parameters of the input that are no object": document(parameters="x"),
    "another datatype": document(datatype="FP64"),
    "no datatype": document(datatype=...),
    "a datatype that is none": document(datatype=7),
    "another shape": document(shape=[2, 1, 3, 2]),
    "no shape": document(shape=...),
    "a shape of floats": document(shape=[2.0, 1, 2, 3]),
    "a shape of truths": document(shape=[2, True, 2, 3]),
    "a shape of text": document(shape="2,1,2,3"),
    "no items": document(shape=[0, 1, 2, 3], data=[]),
    "fewer than no items": document(shape=[-2, 1, 2, 3]),
    "too large a shape": document(shape=[2**70, 1, 2, 3]),
    "no data": document(data=...),
    "null data": document(data=None),
    "one number": document(data=1.5),
    "text": document(data="AAAA"),
    "a list of texts": document(data=["1"] * 12),
    "truths": document(data=[True] * 12),
    "nulls": document(data=[None] * 12),
    "an object": document(data={"0": 1}),
    "too few": document(data=[1.0] * 11),
    "too many": document(data=[1.0] * 13),
    "ragged": document(data=[[[[1, 2, 3], [4, 5, 6]]], [[[1, 2], [3, 4, 5, 6]]]]),
    "nested otherwise": document(data=[[1.0] * 6] * 2),
    "both forms": document(parameters={"binary_data_size": 48}),
    "binary without bytes": document(data=..., parameters={"binary_data_size": 48}),
    "data beside the input": {**document(), "parameters": {"data": [1, 2]}},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_request_with_a_fault_is_malformed(case: str) -> None:
    with pytest.raises(MalformedRequest):
        decode(parse(json.dumps(MALFORMED[case]).encode(), None), SPEC)


UNINSPECTABLE = {
    "shared memory": document(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 48}),
    "shared memory beside data": document(parameters={"shared_memory_offset": 0}),
    "another content type": document(parameters={"content_type": "base64"}),
    "a content type that is no text": document(parameters={"content_type": 7}),
    "of the request": {**document(), "parameters": {"content_type": "pd"}},
    "BYTES": document(datatype="BYTES", shape=[2], data=["/9j/4AAQ", "/9j/4AAQ"]),
}


@pytest.mark.parametrize("case", UNINSPECTABLE)
def test_what_the_bytes_do_not_show_is_uninspectable(case: str) -> None:
    with pytest.raises(Uninspectable):
        decode(parse(json.dumps(UNINSPECTABLE[case]).encode(), None), SPEC)


@pytest.mark.parametrize(("kept", "more", "length_off"), [(47, 0, 0), (48, 1, 0), (0, 0, 0), (48, 0, 1), (48, 0, -1)])
def test_binary_bytes_of_another_number_are_malformed(kept: int, more: int, length_off: int) -> None:
    text = json.dumps(document(data=..., parameters={"binary_data_size": IMAGES.nbytes})).encode()
    with pytest.raises(MalformedRequest):
        decode(parse(text + IMAGES.tobytes()[:kept] + bytes(more), len(text) + length_off), SPEC)


@pytest.mark.parametrize("size", [True, 48.0, "48", None, -48, 47, 10**30])
def test_a_binary_size_that_is_another_is_malformed(size: Any) -> None:
    text = json.dumps(document(data=..., parameters={"binary_data_size": size})).encode()
    with pytest.raises(MalformedRequest):
        decode(parse(text + IMAGES.tobytes(), len(text)), SPEC)


@pytest.mark.parametrize("numbers", [[float("nan")] * 12, [float("inf")] * 12, [1e39] + [0.0] * 11])
def test_what_is_not_finite_is_malformed(numbers: list[float]) -> None:
    """The constants are no JSON, and what float32 cannot hold would be infinity in the model."""
    with pytest.raises(MalformedRequest):
        decode(parse(json.dumps(document(data=numbers)).encode(), None), SPEC)


@pytest.mark.parametrize("number", [0.5, -1, 256, 1e300, 1e999])
def test_a_number_that_is_no_uint8_is_malformed(number: float) -> None:
    spec = InputSpec("input", "UINT8", (2,), (0.0,), (255.0,), 255)
    text = f'{{"inputs":[{{"name":"input","shape":[1,2],"datatype":"UINT8","data":[1,{number:g}]}}]}}'
    with pytest.raises(MalformedRequest):
        decode(parse(text.encode(), None), spec)


@pytest.mark.parametrize("text", [b"\xff\xfe", b'{"id": "\xff"}', json.dumps(document()).encode("utf-16")])
def test_what_is_not_utf_8_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(text, None)


@pytest.mark.parametrize("given", [["x"], ["-1"], ["1", "1"], ["1, 1"], [""], ["+1"], ["\u0661"], ["9" * 30]])
def test_a_length_of_json_that_is_none_is_malformed(given: list[str]) -> None:
    with pytest.raises(MalformedRequest):
        json_length(given)


def test_a_body_that_names_another_model_than_its_path_is_malformed() -> None:
    request = parse(json.dumps({**document(), "model_name": "tiny", "model_version": "2"}).encode(), None)
    check_model(request, "tiny", "2")
    for name, version in (("other", "2"), ("tiny", "1"), ("tiny", "")):
        with pytest.raises(MalformedRequest):
            check_model(request, name, version)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", None]))
def test_a_packed_body_is_unpacked(body: bytes, coding: str | None) -> None:
    assert unpacked(packed(body, coding), coding, len(body)) == body


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_is_one_whole_stream_and_bounded(coding: str) -> None:
    whole = packed(b"x" * 1000, coding)
    with pytest.raises(TooLarge):
        unpacked(whole, coding, 999)
    for wrong in (whole[:-1], whole + b"\0", whole + whole, b"", b"{}", whole[:-5] + bytes(5)):
        with pytest.raises(MalformedRequest):
            unpacked(wrong, coding, 10_000)


def test_codings_that_servers_read_differently_are_refused() -> None:
    raw_deflate = zlib.compressobj(wbits=-15)
    with pytest.raises(MalformedRequest):
        unpacked(raw_deflate.compress(b"{}") + raw_deflate.flush(), "deflate", 100)
    with pytest.raises(MalformedRequest):
        unpacked(gzip.compress(b"{}"), "deflate", 100)
    for values in (["gzip", "gzip"], ["gzip, gzip"], ["br"], ["identity", "gzip"], [""], ["zstd"], ["x-gzip"]):
        with pytest.raises(MalformedRequest):
            coding_of(values)
    assert coding_of(["GZIP"]) == "gzip"
    assert coding_of([]) is coding_of(["identity"]) is None
