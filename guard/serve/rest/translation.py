"""V2 REST in terms of the gRPC protocol: a request's JSON and binary tensors as a message, a reply as JSON.

Rule 1: the message holds the values that the guard inspected: both come from one parse of the strict reader.
Rule 2: every tensor travels raw, since a message may not mix raw and typed ones.
Rule 3: a reply says what the model said, or is an error: nothing is cut, filled up or converted to another value. Only
        numbers that are not finite become null, as JSON has no other word for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import MalformedRequest, UpstreamDown
from guard.serve.grpc.decode import TYPED_FIELD
from guard.serve.grpc.wire.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from guard.serve.named_class import LENGTH_BYTES, words_of
from guard.serve.rest.decode import BINARY_SIZE, RestRequest, listed, parameters
from guard.serve.rest.strict_json import Numbers
from guard.serve.tensor import DTYPES

BINARY_WANTED, ALL_BINARY_WANTED = "binary_data", "binary_data_output"  # of one output, of all
INT64_VALUES = 2**64
ITEM_BYTES = {"BF16": 2, **{datatype: dtype.itemsize for datatype, dtype in DTYPES.items()}}


def message_of(request: RestRequest, name: str, version: str) -> ModelInferRequest:
    """The message that asks what the JSON asks. Raises MalformedRequest."""
    try:
        return translated(request, name, version)
    except (ValueError, OverflowError, RecursionError) as error:  # such as an axis of more than 63 bits
        raise MalformedRequest(f"the request holds what no message of the gRPC protocol can: {error}") from error


def translated(request: RestRequest, name: str, version: str) -> ModelInferRequest:
    """The message that asks what the JSON asks. Raises MalformedRequest, and what protobuf raises for odd values."""
    message = ModelInferRequest(model_name=name, model_version=version, id=request.id)
    given = parameters(request.document, "the request")
    set_parameters(message.parameters, given, but=ALL_BINARY_WANTED)
    start = 0
    for tensor in listed(request.document.get("inputs"), "inputs"):
        where = f"input {str(tensor.get('name'))[:40]!r}"
        given = parameters(tensor, where)
        shape, datatype = tensor.get("shape"), str(tensor.get("datatype"))
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise MalformedRequest(f"{where} has no shape, or one that is no list of whole numbers")
        into = message.inputs.add(name=str(tensor.get("name")), datatype=datatype, shape=shape)
        set_parameters(into.parameters, given, but=BINARY_SIZE)
        size = given.get(BINARY_SIZE)
        if size is None:
            message.raw_input_contents.append(packed_values(tensor.get("data"), datatype, shape, where))
        elif type(size) is int and 0 <= size <= len(request.binary) - start:
            message.raw_input_contents.append(bytes(request.binary[start : start + size]))
            start += size
        else:
            raise MalformedRequest(f"{where} has {BINARY_SIZE} {str(size)[:20]}, and fewer bytes follow the JSON")
    for output in listed(request.document.get("outputs"), "outputs"):
        asked = message.outputs.add(name=str(output.get("name")))
        set_parameters(asked.parameters, parameters(output, "an output"), but=BINARY_WANTED)
    return message


def set_parameters(into: Any, given: Mapping[str, Any], *, but: str) -> None:
    """Write the parameters of JSON as those of a message, but for the one that REST alone knows."""
    for key, value in given.items():
        match value:
            case _ if key == but:
                continue
            case bool():
                into[key].CopyFrom(InferParameter(bool_param=value))
            case int() if -INT64_VALUES // 2 <= value < INT64_VALUES // 2:
                into[key].CopyFrom(InferParameter(int64_param=value))
            case float():
                into[key].CopyFrom(InferParameter(double_param=value))
            case str():
                into[key].CopyFrom(InferParameter(string_param=value))
            case _:
                raise MalformedRequest(f"the parameter {key[:40]!r} is no text, number, true or false")


def packed_values(data: Any, datatype: str, shape: list[int], where: str) -> bytes:
    """The bytes of a tensor that came as JSON. Raises MalformedRequest."""
    if datatype == "BYTES":
        words = [word.encode() for word in flat(data) if isinstance(word, str)]
        if len(words) != math.prod(shape) or len(words) != len(flat(data)):
            raise MalformedRequest(f"{where} has no text for each element of shape {shape}")
        return b"".join(len(word).to_bytes(LENGTH_BYTES, "little") + word for word in words)
    if datatype == "BOOL" and not isinstance(data, Numbers):
        truths = [one for one in flat(data) if isinstance(one, bool)]
        if len(truths) != math.prod(shape) or len(truths) != len(flat(data)):
            raise MalformedRequest(f"{where} has no true or false for each element of shape {shape}")
        return np.asarray(truths, dtype="?").tobytes()
    dtype = DTYPES.get(datatype)
    if dtype is None or not isinstance(data, Numbers):
        raise MalformedRequest(f"{where} has no data that is a list of {datatype[:20]}")
    if dtype.itemsize == 8 and dtype.kind in "iu":  # a float holds no more than 53 bits of them
        return whole_numbers(data, dtype, shape, where).tobytes()
    values = data.values(shape)
    if (
        dtype.kind in "iub"
        and ((values != np.floor(values)) | (values < limits(dtype)[0]) | (values > limits(dtype)[1])).any()
    ):
        raise MalformedRequest(f"{where} holds what is no {datatype}")
    with np.errstate(over="ignore"):  # to infinity, as every server converts it
        return values.astype(dtype).tobytes()


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the largest value of a whole type."""
    if dtype.kind == "b":
        return 0, 1
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def whole_numbers(data: Numbers, dtype: np.dtype[Any], shape: list[int], where: str) -> NDArray[Any]:
    """The elements of 64 bits, exactly. Raises MalformedRequest."""
    data.values(shape)  # its form
    found = flat(json.loads(data.text[data.start : data.end]))
    low, high = limits(dtype)
    if not all(type(one) is int and low <= one <= high for one in found):
        raise MalformedRequest(f"{where} holds what is no whole number of 64 bits")
    return np.asarray(found, dtype=dtype)


def flat(data: Any) -> list[Any]:
    """The elements of a list that may be nested, in their order."""
    return [one for part in data for one in flat(part)] if isinstance(data, list) else [data]


def reply_of(response: ModelInferResponse, request: RestRequest) -> tuple[bytes, int | None]:
    """The reply's body, and the length of its JSON where binary tensors follow it (as the request wants them).

    Raises:
        UpstreamDown: the reply contradicts itself.
        MalformedRequest: an output that is wanted as JSON holds what JSON cannot.
    """
    wanted = binary_outputs(request)
    outputs, binary = [], []
    for number, tensor in enumerate(response.outputs):
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        given = parameters_of(tensor.parameters)
        raw = raw_of(response, number)
        check_size(tensor, raw)
        if wanted(tensor.name):
            given[BINARY_SIZE] = len(raw)
            binary.append(raw)
        else:
            described["data"] = data_of(tensor, raw)
        if given:
            described["parameters"] = given
        outputs.append(described)
    document: dict[str, Any] = {"model_name": response.model_name, "outputs": outputs}
    for key in ("model_version", "id"):
        if getattr(response, key):
            document[key] = getattr(response, key)
    if given := parameters_of(response.parameters):
        document["parameters"] = given
    text = json.dumps(document, allow_nan=False).encode()
    return b"".join((text, *binary)), len(text) if binary else None


def binary_outputs(request: RestRequest) -> Any:
    """A function from an output's name to whether the request wants it as bytes behind the JSON."""
    by_default = request.parameters.get(ALL_BINARY_WANTED) is True
    named = {
        str(output.get("name")): parameters(output, "an output").get(BINARY_WANTED, by_default)
        for output in listed(request.document.get("outputs"), "outputs")
    }
    return lambda name: named.get(name, by_default) is True


def parameters_of(found: Mapping[str, InferParameter]) -> dict[str, Any]:
    """The parameters of a message, as JSON has them; one without a value is null."""
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in found.items()}
    return {key: None if kind is None else finite(getattr(found[key], kind)) for key, kind in kinds.items()}


def finite(value: Any) -> Any:
    """A value of a message as JSON has it: what is not finite is null there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def raw_of(response: ModelInferResponse, number: int) -> bytes:
    """The bytes of an output. Raises UpstreamDown where it has none, or typed values that are none of its datatype."""
    tensor = response.outputs[number]
    if response.raw_output_contents:
        if number < len(response.raw_output_contents):
            return response.raw_output_contents[number]
        raise broken(tensor, "has no bytes, and outputs before it have")
    field = TYPED_FIELD.get(tensor.datatype)
    if field is None:
        raise broken(tensor, f"is {tensor.datatype[:20]}, which travels raw, and has no bytes")
    values = getattr(tensor.contents, field)
    if field == "bytes_contents":
        return b"".join(len(word).to_bytes(LENGTH_BYTES, "little") + word for word in values)
    dtype = DTYPES[tensor.datatype]
    if dtype.kind in "iu" and not all(limits(dtype)[0] <= value <= limits(dtype)[1] for value in values):
        raise broken(tensor, f"holds what is no {tensor.datatype}")
    return np.asarray(values, dtype=dtype).tobytes()


def check_size(tensor: Any, raw: bytes) -> None:
    """Raise UpstreamDown where an output has other elements than its shape says; of unknown types none are known."""
    wanted = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        words = words_of(raw)
        if len(words) != wanted or sum(map(len, words)) + LENGTH_BYTES * wanted != len(raw):
            raise broken(tensor, f"has {len(raw)} bytes, which are no {wanted} texts")
    elif (size := ITEM_BYTES.get(tensor.datatype)) is not None and len(raw) != wanted * size:
        raise broken(
            tensor, f"has {len(raw)} bytes; shape {list(tensor.shape)} of {tensor.datatype} takes {wanted * size}"
        )


def broken(tensor: Any, said: str) -> UpstreamDown:
    return UpstreamDown(f"the model server behind the guard contradicts itself: output {tensor.name[:40]!r} {said}")


def data_of(tensor: Any, raw: bytes) -> list[Any]:
    """The elements of an output in a row, as JSON has them: null for what is not finite. Raises MalformedRequest."""
    if tensor.datatype == "BYTES":
        try:
            return [word.decode() for word in words_of(raw)]
        except UnicodeDecodeError as error:
            raise needs_binary(tensor, "texts that are not in UTF-8") from error
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise needs_binary(tensor, f"elements of {tensor.datatype[:20] or 'no datatype'}")
    return [finite(one) for one in np.frombuffer(raw, dtype).tolist()]


def needs_binary(tensor: Any, what: str) -> MalformedRequest:
    return MalformedRequest(
        f"output {tensor.name[:40]!r} holds {what}, which JSON cannot; ask for it with the parameter "
        f'"{BINARY_WANTED}": true'
    )
