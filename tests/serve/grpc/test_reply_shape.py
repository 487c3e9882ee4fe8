"""The shape of a stream's replies, told from their bytes and from the server's name."""

from __future__ import annotations

import pytest

from guard.serve.grpc.reply_shape import ReplyShape, error_reply, length, shape_of_reply, shape_of_server
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from tests.serve.streaming_upstream import wrapped

FULL = ModelInferResponse(model_name="m", model_version="1", id="x", raw_output_contents=[b"12"])
FULL.outputs.add(name="logits", datatype="FP32", shape=[1, 3])
FINAL = ModelInferResponse(model_name="m", model_version="1", id="x")
FINAL.parameters["triton_final_response"].bool_param = True


@pytest.mark.parametrize(
    ("reply", "shape"),
    [
        (FULL.SerializeToString(), ReplyShape.BARE),
        (FINAL.SerializeToString(), ReplyShape.BARE),
        (ModelInferResponse(model_name="m", model_version="1").SerializeToString(), ReplyShape.BARE),
        (ModelInferResponse(model_name="m", model_version="2024-05-01").SerializeToString(), ReplyShape.BARE),
        (wrapped(FULL.SerializeToString()), ReplyShape.WRAPPED),
        (wrapped(FINAL.SerializeToString()), ReplyShape.WRAPPED),
        (wrapped(b""), ReplyShape.WRAPPED),
        (error_reply("it failed", "x"), ReplyShape.WRAPPED),
        (error_reply("it failed", ""), ReplyShape.WRAPPED),
        (ModelInferResponse(model_name="m").SerializeToString(), None),
        (b"", None),
        (b"\xff\xff", None),
    ],
    ids=str,
)
def test_a_reply_shows_its_shape_or_nothing(reply: bytes, shape: ReplyShape | None) -> None:
    assert shape_of_reply(reply) is shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("triton", ReplyShape.WRAPPED),
        ("OpenVINO Model Server", ReplyShape.WRAPPED),
        ("mlserver", ReplyShape.BARE),
        ("MLServer", ReplyShape.BARE),
        ("another", None),
        ("", None),
    ],
)
def test_a_server_is_known_by_its_name(name: str, shape: ReplyShape | None) -> None:
    assert shape_of_server(name) is shape


@pytest.mark.parametrize(("size", "written"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_a_length_is_a_varint(size: int, written: bytes) -> None:
    assert length(bytes(size)) == written


def test_an_error_is_read_back_by_the_protocol() -> None:
    reply = error_reply("ü" * 100, "id")
    # Fields 1 and 2 of a ModelInferResponse are texts as well, so the parser at hand can read them.
    found = ModelInferResponse.FromString(reply)
    assert found.model_name == "ü" * 100
    assert ModelInferResponse.FromString(found.model_version.encode()).id == "id"
