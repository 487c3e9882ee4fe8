"""Answers of a running model server that speaks the Open Inference Protocol (V2) over gRPC.

Rule 1: every question has a deadline, and is asked again a few times before the run ends; what was answered is kept by
the caller, so that a run that was started again asks only for the rest.
Rule 2: a batch that a server finds too large is halved, down to one item. Servers say so by many statuses; one that may
mean anything counts for it only above the largest batch that was ever answered.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.offline.closed.closed_model import FROM_WHOLE, Ask, ClosedModel, in_rows
from guard.offline.closed.v2_messages import SERVICE, message_classes

TIMEOUT_S = 20.0  # for one batch
MAX_TRIES = 4
WAIT_S = 0.5  # before the second try; twice as long before each further one
FIRST_BATCH_ITEMS = 256
MAX_MESSAGE_BYTES = 64 * 2**20
LENGTH_BYTES = 4  # before each text of a raw BYTES tensor
PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}
TOO_LARGE = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE}
PERHAPS_TOO_LARGE = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
DTYPES = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BOOL": np.dtype("?"),
}
FIELDS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}
SENT = {"FP32": "FP32", "FP64": "FP64", "FP16": "FP16", "UINT8": "UINT8"}
LABEL_OUTPUT, SCORE_OUTPUT = "predict", "predict_proba"  # of MLServer's scikit-learn runtime
Wait = Callable[[float], None]


@dataclass
class Server:
    """A model of a running server, asked batch by batch."""

    address: str
    name: str
    version: str = ""
    timeout_s: float = TIMEOUT_S
    wait: Wait = time.sleep
    datatype: str = "FP32"
    input_name: str = "input"
    output_name: str | None = None
    batch_items: int = FIRST_BATCH_ITEMS
    answered_items: int = 0  # of the largest batch that was answered
    messages: dict[str, Any] = field(default_factory=message_classes, repr=False)

    def __post_init__(self) -> None:
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self.channel = grpc.insecure_channel(self.address, options=options)

    def call(self, method: str, request: Any, answer: str) -> Any:
        """Call a method until it answers; what may pass is tried again. Raises grpc.RpcError."""
        ask: Any = self.channel.unary_unary(
            f"{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.messages[answer].FromString,
        )
        for tries in range(MAX_TRIES):
            try:
                return ask(request, timeout=self.timeout_s)
            except grpc.RpcError as error:
                if error.code() not in PASSING or tries == MAX_TRIES - 1:
                    raise
                self.wait(WAIT_S * 2**tries)
        raise AssertionError("unreachable")

    def metadata(self) -> Any:
        """Return what the server says of the model. Raises ModelError where it cannot be asked."""
        try:
            return self.call("ModelMetadata", self.messages["Model"](name=self.name, version=self.version), "Metadata")
        except grpc.RpcError as error:
            raise self.failed(error) from error

    def ask(self, wire: NDArray[Any]) -> NDArray[Any]:
        """Return the output for wire inputs [item, ...].

        Raises:
            ModelError: the server cannot answer even one item; what it said first is told.
        """
        parts, start, before = [], 0, self.batch_items
        first: grpc.RpcError | None = None
        while start < len(wire):
            part = wire[start : start + self.batch_items]
            try:
                parts.append(self.asked(part))
            except grpc.RpcError as error:
                first = error if first is None or error.code() in PASSING else first
                if not self.is_too_large(error.code(), len(part)):
                    self.batch_items = before
                    raise self.failed(first) from first
                self.batch_items = len(part) // 2
                continue
            first, start = None, start + len(part)
            self.answered_items = max(self.answered_items, len(part))
        return np.concatenate(parts)

    def is_too_large(self, status: grpc.StatusCode, items: int) -> bool:
        """Tell whether a status says, or may say, that a batch of so many items is too large."""
        perhaps = status in PERHAPS_TOO_LARGE and items > self.answered_items
        return items > 1 and (status in TOO_LARGE or perhaps)

    def asked(self, wire: NDArray[Any]) -> NDArray[Any]:
        request = self.messages["InferRequest"](model_name=self.name, model_version=self.version)
        request.inputs.add(name=self.input_name, datatype=self.datatype, shape=wire.shape)
        request.raw_input_contents.append(np.ascontiguousarray(wire, dtype=DTYPES[self.datatype]).tobytes())
        if self.output_name is not None:
            request.outputs.add(name=self.output_name)
        response = self.call("ModelInfer", request, "InferResponse")
        names = [tensor.name for tensor in response.outputs]
        if self.output_name is None and len(names) != 1:
            raise ModelError(
                f"{self} answers with outputs {', '.join(names) or 'none'}; say which holds the prediction with "
                "--output-name"
            )
        if self.output_name is not None and self.output_name not in names:
            raise ModelError(f"{self} has no output {self.output_name!r}; it answers with {', '.join(names)}")
        self.output_name = self.output_name or names[0]
        return self.tensor(response, names.index(self.output_name))

    def tensor(self, response: Any, index: int) -> NDArray[Any]:
        """Return an output as an array of its shape. Raises ModelError where its bytes do not fit its shape."""
        tensor = response.outputs[index]
        shape = tuple(tensor.shape)
        if index < len(response.raw_output_contents):
            raw = response.raw_output_contents[index]
            values: Any = words(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, self.dtype_of(tensor))
        else:
            values = list(getattr(tensor.contents, FIELDS.get(tensor.datatype, "bytes_contents")))
        found = np.asarray(values, dtype=object if tensor.datatype == "BYTES" else self.dtype_of(tensor))
        if found.size != math.prod(shape):
            raise ModelError(f"{self}: output {tensor.name!r} has {found.size} elements for shape {list(shape)}")
        return found.reshape(shape)

    def dtype_of(self, tensor: Any) -> np.dtype[Any]:
        if tensor.datatype not in DTYPES:
            raise ModelError(f"{self}: output {tensor.name!r} is {tensor.datatype!r}; wanted numbers or words")
        return DTYPES[tensor.datatype]

    def __str__(self) -> str:
        return f"model {self.name!r} of the server at {self.address}"

    def failed(self, error: grpc.RpcError) -> ModelError:
        """Return the error for a call that failed in the end."""
        status = f"{error.code().name}, {error.details()}"
        again = error.code() in PASSING
        remedy = (
            f"it was asked {MAX_TRIES} times, {self.timeout_s:g} s each; its answers so far are kept: start again when "
            "it runs"
            if again
            else "wanted the name of a model that it serves (--name NAME[:VERSION]) and takes one tensor of floats"
        )
        return ModelError(f"{self} answered {status}; {remedy}")


def words(raw: bytes) -> list[bytes]:
    """Return the texts of a raw BYTES tensor, each behind its length (4 bytes, little-endian)."""
    found, start = [], 0
    while start + LENGTH_BYTES <= len(raw):
        end = start + LENGTH_BYTES + int.from_bytes(raw[start : start + LENGTH_BYTES], "little")
        found.append(raw[start + LENGTH_BYTES : end])
        start = end
    return found


def server_answers(
    address: str, name: str, *, input_name: str | None, output_name: str | None, names: tuple[str, ...]
) -> ClosedModel:
    """Return a model of a running server as one that answers. Raises ModelError: it cannot be reached or understood."""
    model, _, version = name.partition(":")
    server = Server(address, model, version, output_name=output_name)
    said = server.metadata()
    if len(said.inputs) > 1:
        listed = ", ".join(tensor.name for tensor in said.inputs)
        raise ModelError(f"{server} takes {len(said.inputs)} inputs ({listed}); exactly one can be guarded")
    for tensor in said.inputs:
        if tensor.datatype not in SENT:
            remedy = FROM_WHOLE if "INT" in tensor.datatype else "encode it before the server"
            raise ModelError(f"{server} takes {tensor.datatype}; wanted {', '.join(SENT)}: {remedy}")
        server.input_name, server.datatype = input_name or tensor.name, tensor.datatype
    if not said.inputs:
        server.input_name = input_name or server.input_name
    sizes = [tuple(int(size) if size > 0 else None for size in tensor.shape[1:]) for tensor in said.inputs]
    outputs = [tensor.name for tensor in said.outputs]
    server.output_name = output_name or SCORE_OUTPUT if SCORE_OUTPUT in outputs or not outputs else output_name
    identity = hashlib.sha256(repr((address, name, server.input_name, server.datatype)).encode())
    ask: Ask = Negotiated(server, guessed=output_name is None)
    fixed = next((int(tensor.shape[0]) for tensor in said.inputs if tensor.shape and tensor.shape[0] > 0), None)
    if fixed is not None:
        server.batch_items = fixed
        ask = in_rows(ask, fixed)
    return ClosedModel(
        reference=f"{address} {name}",
        by=f"the server at {address}",
        identity=identity.hexdigest(),
        ask=ask,
        batch_items=FIRST_BATCH_ITEMS,
        sizes=sizes[0] if sizes else None,
        datatype=server.datatype,
        input_name=server.input_name,
        output_name=output_name,
        names=names,
        answered_as=lambda: server.output_name,
    )


@dataclass
class Negotiated:
    """A question to a server whose output's name was guessed: where it is unknown, the server's own choice counts.

    MLServer's scikit-learn runtime gives labels unless `predict_proba` is asked for, and some models have none. A
    server that is away or late says nothing of that.
    """

    server: Server
    guessed: bool

    def __call__(self, wire: NDArray[Any]) -> NDArray[Any]:
        if self.guessed and self.server.output_name is not None:
            try:
                found = self.server.ask(wire)
            except ModelError as error:
                status = error.__cause__.code() if isinstance(error.__cause__, grpc.RpcError) else None
                if status in PASSING | TOO_LARGE:
                    raise
                self.server.output_name = None
            else:
                self.guessed = False
                return found
        self.guessed = False
        return self.server.ask(wire)
