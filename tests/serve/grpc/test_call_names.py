"""The names by which a call is found again: in every line that the log has of it, and in what goes up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.runtime import Runtime
from guard.serve.grpc.call_names import MAX_NAME_CHARACTERS, names_of
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SENT = (("x-request-id", "request-7"), ("traceparent", PARENT), ("tracestate", "a=1"))


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (PARENT, True),
        (f"cc-{TRACE}-{SPAN}-00-what-will-come", True),  # a later version
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        ("", False),
        (b"00", False),
    ],
)
def test_a_trace_parent_is_read_as_w3c_has_it(value: str | bytes, *, known: bool) -> None:
    assert names_of([("traceparent", value)]) == ({"trace_id": TRACE, "span_id": SPAN} if known else {})


def test_a_request_id_is_the_first_and_is_cut_short() -> None:
    given = [("x-request-id", "a" * 500), ("x-request-id", "b")]
    assert names_of(given) == {"request_id": "a" * MAX_NAME_CHARACTERS}
    assert names_of(None) == names_of([("x-request-id", b"\xff")]) == {}


@pytest.mark.parametrize("end", ["reject", "malformed", "failed inspection", "unchecked"])
def test_each_line_of_a_call_names_it(bundle: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    def faulty(*given: Any, **options: Any) -> Any:
        raise RuntimeError("a fault of the device")

    if end in ("failed inspection", "unchecked"):
        read = Runtime.read
        monkeypatch.setattr(Runtime, "read", lambda *given, **options: (fails[0] or read)(*given, **options))
    fails: list[Any] = [None]

    async def story() -> None:
        async with guarding(bundle, on_failure="open" if end == "unchecked" else "closed") as guarded:
            fails[0] = faulty
            images = BRIGHT if end == "reject" else ORDINARY
            options = {"name": "stranger"} if end == "malformed" else {}
            answer = await guarded.client.infer(images, id="message-5", metadata=SENT, **options)
            event = {"reject": "reject", "unchecked": "unchecked"}.get(end, "refused")
            (line,) = guarded.events(event)
            assert (line["id"], line["request_id"]) == (answer.trailing["guard-id"], "request-7")
            assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)

    asyncio.run(story())


def test_what_goes_up_has_the_same_names(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            headers = guarded.upstream.headers
            await guarded.client.infer(ORDINARY, id="message-5", metadata=SENT)
            assert (headers[-1]["x-request-id"], headers[-1]["traceparent"]) == ("request-7", PARENT)
            assert headers[-1]["tracestate"] == "a=1"
            await guarded.client.infer(ORDINARY, id="message-5")
            assert headers[-1]["x-request-id"] == "message-5"
            for message_id in ("", "naïve"):  # none, or one that no header may hold
                answer = await guarded.client.infer(ORDINARY, id=message_id)
                assert headers[-1]["x-request-id"] == answer.trailing["guard-id"]

    asyncio.run(story())


def test_without_a_header_the_message_or_the_guard_names_a_line(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            for message_id in ("message-5", ""):
                answer = await guarded.client.infer(BRIGHT, id=message_id)
                assert answer.code is grpc.StatusCode.PERMISSION_DENIED
                line = guarded.events("reject")[-1]
                assert line["request_id"] == (message_id or answer.trailing["guard-id"])
                assert "trace_id" not in line

    asyncio.run(story())
