"""The two shapes that replies of ModelStreamInfer have, and which of them a model server speaks.

How it works. Triton and OpenVINO Model Server wrap a reply: ModelStreamInferResponse {error_message = 1,
infer_response = 2}, so that one request of a stream can fail alone. MLServer and Seldon send a bare ModelInferResponse
{model_name = 1, model_version = 2, id = 3, parameters = 4, outputs = 5, raw_output_contents = 6}, which holds no error.
A reply with a field above 2 is bare. One whose field 2 is a message itself is wrapped: a version such as "1" is none. A
reply that has field 1 alone could be either, and tells nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse

ERROR_MESSAGE_TAG, INFER_RESPONSE_TAG = b"\x0a", b"\x12"  # fields 1 and 2, whose lengths follow
SERVERS = {"triton": "wrapped", "openvino": "wrapped", "mlserver": "bare"}  # how names in ServerMetadata begin


class ReplyShape(StrEnum):
    """The shape of a stream's replies."""

    WRAPPED = "wrapped"
    BARE = "bare"


def shape_of_server(name: str) -> ReplyShape | None:
    """The shape that a server of this name in ServerMetadata speaks; None where the name tells nothing."""
    for beginning, shape in SERVERS.items():
        if name.lower().startswith(beginning):
            return ReplyShape(shape)
    return None


def shape_of_reply(reply: bytes) -> ReplyShape | None:
    """The shape of a serialized reply; None where it could be either."""
    try:
        unknown: Any = UnknownFieldSet(Empty.FromString(reply))
        fields = [unknown[place] for place in range(len(unknown))]
    except DecodeError:
        return None
    if any(field.field_number > 2 for field in fields):
        return ReplyShape.BARE
    inner = [field.data for field in fields if field.field_number == 2]
    if not inner:
        return None
    try:
        ModelInferResponse.FromString(inner[-1])
    except (DecodeError, TypeError):
        return ReplyShape.BARE
    return ReplyShape.WRAPPED


def error_reply(text: str, message_id: str) -> bytes:
    """A serialized ModelStreamInferResponse with an error, and with the id of the request that failed, as Triton's."""
    inner: bytes = ModelInferResponse(id=message_id).SerializeToString()
    words = text.encode()
    return b"".join((ERROR_MESSAGE_TAG, length(words), words, INFER_RESPONSE_TAG, length(inner), inner))


def length(content: bytes) -> bytes:
    """The number of bytes as protobuf writes it: seven bits a byte, the lowest first, the last without a high bit."""
    value, found = len(content), bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
