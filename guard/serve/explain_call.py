"""The call behind `guard explain`: a running guard is asked what lies behind its verdict on one input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToJson
from numpy.typing import NDArray

from guard.arrays import read_examples, to_wire
from guard.audit_log import is_audit_log, kept_tensor, read_lines
from guard.columns import ColumnChoice
from guard.errors import DataError, NotReadyError
from guard.explanation import shaded
from guard.manifest import Manifest, ModelSpec
from guard.serve.client_channel import ClientTls, channel_to, token_metadata
from guard.serve.grpc.wire.guard_pb2 import (
    DescribeRequest,
    DescribeResponse,
    ExplainRequest,
    ExplainResponse,
    Explanation,
)
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest

SERVICE = "/guard.v1.Guard"
MAX_ANSWER_BYTES = 64 << 20
MAX_NAMED_MESSAGES = 8  # of messages, in an error


@dataclass(frozen=True)
class Wanted:
    """The input that is to be explained: an item of a file, or what an audit log kept of a request."""

    source: Path
    item: int = 0  # of a file
    id: str | None = None  # of the request, in an audit log
    model: str | None = None  # as the guard labels it; None: its only one


def explain(
    address: str,
    wanted: Wanted,
    *,
    timeout_s: float,
    tls: ClientTls | None = None,
    token_file: Path | None = None,
) -> tuple[ExplainResponse, ModelSpec]:
    """Ask the guard whose admin listener is at `address`, and return its answer and the model that it is about.

    Raises:
        ConfigError: a file for TLS, or that of the token, cannot be used.
        DataError: there is no such input, or the guard does not take it.
        NotReadyError: no guard answers there, or not in time.
    """
    metadata = token_metadata(token_file)
    options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
    with channel_to(address, tls, options) as channel:

        def ask(method: str, request: Any) -> bytes:
            start: Any = channel.unary_unary(f"{SERVICE}/{method}")
            try:
                answer: bytes = start(request.SerializeToString(), timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                raise error_of(error, address) from error
            return answer

        described = DescribeResponse.FromString(ask("Describe", DescribeRequest()))
        name, version, spec = chosen_model(described, wanted.model)
        request = infer_request(spec, input_of(wanted, spec))
        request.model_name, request.model_version = name, version
        return ExplainResponse.FromString(ask("Explain", ExplainRequest(request=request))), spec


def error_of(error: Any, address: str) -> DataError | NotReadyError:
    """The error that a guard's status stands for."""
    told = f"{error.code().name}, {error.details()}"
    if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
        return DataError(f"the guard at {address} does not take this input: {told}")
    hint = "; name the address of admin_listen" if error.code() is grpc.StatusCode.UNIMPLEMENTED else ""
    return NotReadyError(f"the guard at {address} explains nothing: it answered {told}{hint}")


def chosen_model(described: DescribeResponse, wanted: str | None) -> tuple[str, str, ModelSpec]:
    """The name, the version and the specification of the model that is meant. Raises DataError."""
    labels = [model.label for model in described.models]
    found = [model for model in described.models if wanted in (None, model.label, model.name)]
    if len(found) != 1:
        named = "several models" if wanted is None else f"no one model {wanted!r}"
        raise DataError(f"the guard has {named}; name one of {', '.join(labels)} with --model")
    model = found[0]
    return model.name, model.version, Manifest.from_json(json.loads(model.manifest_json)).model


def input_of(wanted: Wanted, spec: ModelSpec) -> NDArray[Any]:
    """The wire input [1, ...] that is meant. Raises DataError."""
    if is_audit_log(wanted.source):
        return kept_input(wanted.source, wanted.id)[None]
    if wanted.id is not None:
        raise DataError(f"--id names a request in an audit log, and {wanted.source} is none; use --item for a file")
    choice = ColumnChoice(features=spec.input.features)
    examples = read_examples(wanted.source, classes=spec.output.labels, choice=choice)
    if not 0 <= wanted.item < len(examples.images):
        raise DataError(f"{wanted.source} has items 0 to {len(examples.images) - 1}, and none {wanted.item} (--item)")
    image = examples.images[wanted.item : wanted.item + 1]
    return to_wire(image, spec.input, str(wanted.source), layout=examples.layout)


def kept_input(log: Path, named: str | None) -> NDArray[Any]:
    """The input that an audit log kept of the request with this `guard-id`, or of "ID, message N" of a stream.

    Raises DataError, also where the log kept inputs of several messages and none is named.
    """
    if named is None:
        raise DataError(f"{log} is an audit log; name the request whose input is meant by its guard-id, with --id")
    lines = [line for line in read_lines(log) if named in (line.get("id"), name_of(line))]
    if not lines:
        raise DataError(f"{log} has no line of a request with id {named!r}")
    kept = [(name_of(line), image) for line in lines if (image := kept_tensor(line)) is not None]
    if not kept:
        raise DataError(f"{log} kept no input of {named!r}; it does from now on with audit_inputs = true")
    if len(kept) > 1:
        names = [name for name, _ in kept]
        more = f" and {len(names) - MAX_NAMED_MESSAGES} more" if len(names) > MAX_NAMED_MESSAGES else ""
        raise DataError(
            f"{log} kept the inputs of {len(kept)} messages of {named!r}; name one, as with --id {names[0]!r}: there "
            f"are {'; '.join(names[:MAX_NAMED_MESSAGES])}{more}"
        )
    return kept[0][1]


def name_of(line: Mapping[str, Any]) -> str:
    """The name by which a client was told of a line's request: of a stream, with the message's number."""
    return f"{line.get('id')}, message {line['message']}" if line.get("message") else str(line.get("id"))


def infer_request(spec: ModelSpec, images: NDArray[Any]) -> ModelInferRequest:
    """The request that sends wire inputs [item, ...] of a model."""
    request = ModelInferRequest()
    request.inputs.add(name=spec.input.name, datatype=spec.input.datatype, shape=images.shape)
    request.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
    return request


def as_json(answer: ExplainResponse) -> str:
    """The answer as one JSON object."""
    text: str = MessageToJson(answer, preserving_proto_field_name=True)
    return text


def as_lines(answer: ExplainResponse, spec: ModelSpec) -> Iterator[str]:
    """Yield the answer as lines of text: verdict, detectors, further answers, nearest clean items, map."""
    found = answer.items[0]
    verdict, named = found.verdict, class_namer(spec.output.labels)
    model_class = named(verdict.prediction)
    yield f"verdict    {verdict.action}, p {verdict.p_value:.2g}, decided by {verdict.program}"
    yield f"model      {model_class} ({found.probability:.2f})"
    for name, p in sorted(((one.name, one.p_value) for one in verdict.detectors), key=lambda pair: pair[1]):
        yield f"p {p:<8.2g} {name}"
    for one in found.opinions:
        other = "" if one.prediction == verdict.prediction else f", {model_class} {one.model_class_probability:.2f}"
        yield f"asked      {one.name}: {named(one.prediction)} ({one.probability:.2f}){other}"
    for near in found.nearest:
        facts = f"{named(near.prediction)}, p {near.p_value:.2g}, distance {near.distance:.2g}"
        yield f"near       the bundle's clean sample {near.sample}: {facts}"
    yield from map_lines(found)


def map_lines(found: Explanation) -> Iterator[str]:
    """Yield the saliency map as text, where there is one."""
    saliency = map_of(found)
    if saliency is None:
        yield "map        none: the bundle's detectors read no input gradient"
    elif saliency.ndim == 1:
        yield f"map        most at {', '.join(map(str, np.argsort(-saliency.astype(int), kind='stable')[:8].tolist()))}"
    else:
        yield f"map        of {' x '.join(map(str, saliency.shape))} places; darker where the answer hangs on the input"
        yield from shaded(saliency)


def map_of(found: Explanation) -> NDArray[np.uint8] | None:
    """The saliency map of an explanation; None where it has none."""
    if not found.HasField("saliency"):
        return None
    return np.frombuffer(found.saliency.levels, dtype=np.uint8).reshape(tuple(found.saliency.shape))


def class_namer(labels: tuple[str, ...]) -> Callable[[int], str]:
    """The words for a class, by its number."""
    known: Mapping[int, str] = dict(enumerate(labels))
    return lambda number: f"class {known.get(number, number)}"
