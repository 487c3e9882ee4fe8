"""What a model server reads in a request: protobuf's own parser and plain numpy, and how that differs from the guard.

The message class is made by protoc from the same .proto, in the default style and in a pool of its own: nothing of the
guard's own reading is in it. Needs the side environment `stubs`.
"""

from __future__ import annotations

import functools
import math
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from guard.errors import RequestError, leaves
from guard.manifest import InputSpec
from guard.serve.grpc import decode
from guard.serve.tensor import Form
from tests.side import ROOT, ready

LIMIT_S = 0.05  # of processor time, for a message below LARGE_BYTES; 11 ms on a slow machine
LARGE_BYTES = 64 * 1024
TIMINGS = 3  # a slow reading counts when the fastest of so many is slow
LEAVES = frozenset(leaves(RequestError))
TYPED = {"FP32": "fp32_contents", "FP64": "fp64_contents", "UINT8": "uint_contents"}


@functools.cache
def request_class() -> Any:
    """inference.ModelInferRequest as protoc has it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inference.bin"
        command = [ready("stubs") / "python", "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}"]
        subprocess.run([*command, f"--descriptor_set_out={file}", "inference.proto"], check=True)
        described = FileDescriptorSet.FromString(file.read_bytes())
    pool = DescriptorPool()
    for one in described.file:
        pool.Add(one)
    return GetMessageClass(pool.FindMessageTypeByName("inference.ModelInferRequest"))


@dataclass(frozen=True)
class Reading:
    """What the guard made of one message."""

    images: NDArray[Any]
    form: Form
    model: tuple[str, str]  # name and version
    encoded: bytes  # the message written anew with the same tensor, as a repair does


def read(wire: bytes, spec: InputSpec) -> Reading:
    """The guard's reading: the one place here that calls it. Raises a RequestError."""
    request = decode.parse(wire)
    decoded = decode.decode(request, spec)
    message = getattr(request, "message", request)
    encoded = decode.encode(message, decoded.images, spec, decoded.form)
    return Reading(decoded.images, decoded.form, (message.model_name, message.model_version), encoded)


@dataclass(frozen=True)
class Judgement:
    """What became of one message: `fault` is None where that is as it has to be."""

    outcome: str  # accepted, or the reason of the refusal
    seconds: float  # of processor time
    fault: str | None = None


def judge(wire: bytes, spec: InputSpec) -> Judgement:
    """Read a message as the guard does, and compare with what a model server reads in it."""
    seconds = math.inf
    for _ in range(TIMINGS):
        began = time.thread_time()
        reading: Reading | None = None
        refusal: Exception | None = None
        try:
            reading = read(wire, spec)
        except Exception as error:  # noqa: BLE001  any other than ours is what is looked for
            refusal = error
        seconds = min(seconds, time.thread_time() - began)
        if seconds <= LIMIT_S:
            break
    slow = seconds > LIMIT_S and len(wire) < LARGE_BYTES
    fault = f"{len(wire)} bytes took {seconds * 1000:.0f} ms" if slow else None
    if reading is not None:
        return Judgement("accepted", seconds, difference(wire, reading, spec) or fault)
    if type(refusal) not in LEAVES:
        return Judgement("crashed", seconds, f"{type(refusal).__name__}: {refusal}")
    return Judgement(refusal.reason, seconds, fault)  # type: ignore[union-attr]


def difference(wire: bytes, reading: Reading, spec: InputSpec) -> str | None:
    """What a model server reads otherwise, or could; None where there is one reading."""
    try:
        message = request_class().FromString(wire)
    except DecodeError:
        return "accepted, and protobuf cannot parse it"
    if unknown := unknown_in(message):
        return f"accepted with an unknown field in {unknown}"
    if (reading.model) != (message.model_name, message.model_version):
        return f"model {reading.model}, protobuf reads {(message.model_name, message.model_version)}"
    if [tensor.name for tensor in message.inputs] != [spec.name]:
        return f"accepted with inputs {[tensor.name for tensor in message.inputs]}"
    tensor = message.inputs[0]
    if tensor.datatype != spec.datatype:
        return f"accepted as {tensor.datatype!r}"
    theirs = tensor_of(message, spec)
    if isinstance(theirs, str):
        return theirs
    if reading.images.shape != tuple(tensor.shape) or reading.images.shape[1:] != spec.wire_shape:
        return f"shape {reading.images.shape}, protobuf reads {list(tensor.shape)}"
    if theirs.nbytes != math.prod(tensor.shape) * spec.dtype.itemsize or reading.images.tobytes() != theirs.tobytes():
        return "another tensor than protobuf's"
    again = request_class().FromString(reading.encoded)
    if again.SerializeToString(deterministic=True) != message.SerializeToString(deterministic=True):
        return "written anew with the same tensor it is another message"
    return None


def tensor_of(message: Any, spec: InputSpec) -> NDArray[Any] | str:
    """The one flat tensor in a message, by plain numpy; or why there is more than one reading of it."""
    filled = [found.name for found, _ in message.inputs[0].contents.ListFields()]
    if len(message.raw_input_contents) > 1 or (message.raw_input_contents and filled):
        return f"accepted with {len(message.raw_input_contents)} raw entries beside {filled}"
    if message.raw_input_contents:
        return np.frombuffer(message.raw_input_contents[0], spec.dtype)
    if filled != [TYPED.get(spec.datatype)]:
        return f"accepted with {filled} for {spec.datatype}"
    values = np.array(list(getattr(message.inputs[0].contents, filled[0])))
    exact = values.astype(spec.dtype)
    return exact if np.array_equal(exact.astype(values.dtype), values) else "accepted with a value that does not fit"


def unknown_in(message: Message) -> str:
    """The name of a message, however deep, that carries an unknown field; empty where none does."""
    if len(UnknownFieldSet(message)):
        return message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            below = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        else:
            below = list(value) if field.is_repeated else [value]
        for part in below:
            if found := unknown_in(part):
                return found
    return ""
