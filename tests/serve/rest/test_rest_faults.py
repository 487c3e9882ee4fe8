"""A model server that is away, hangs, or answers garbage over HTTP; failing closed and open; overload; the books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.config import ServeConfig
from guard.errors import ConfigError, PortError, RequestError, leaves
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve.guarded import config_for, free_port, until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, listening
from tests.serve.rest.rest_guarded import BRIGHT, ORDINARY, json_body, rest_guarding, rest_guarding_at

BODY = json_body(ORDINARY)


def test_a_model_server_that_dies_and_returns(bundle: Path) -> None:
    async def story() -> None:
        port = free_port()
        async with rest_guarding_at(bundle, f"http://127.0.0.1:{port}") as guarded:
            answer = await guarded.post(BODY)
            assert answer.status_code == 502
            assert answer.headers["guard-reason"] == "UPSTREAM_DOWN"
            assert (await guarded.client.get("/v2/health/live")).status_code == 200
            assert (await guarded.client.get("/v2/health/ready")).status_code == 503
            for _ in range(2):
                async with listening(FakeRestUpstream(), port):
                    await guarded.until_ready()
                    assert (await guarded.post(BODY)).status_code == 200
                assert (await guarded.post(BODY)).status_code == 502
                await until(lambda: guarded.serving.readiness.because is not None)

    asyncio.run(story())


@asynccontextmanager
async def answering(answer: bytes, *, then_close: bool = True) -> AsyncIterator[str]:
    """A server that reads a request's beginning and answers these bytes, whatever it was."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if then_close:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["nothing", "garbage", "cut", "chunks cut", "two lengths", "endless head", "another protocol"],
)
def test_an_answer_that_is_no_http_is_a_failed_upstream(bundle: Path, answer: bytes) -> None:
    async def story() -> None:
        async with answering(answer) as url, rest_guarding_at(bundle, url) as guarded:
            found = await guarded.post(BODY)
            assert (found.status_code, found.headers["guard-reason"]) == (502, "UPSTREAM_DOWN"), found.text
            assert await guarded.metric("guard_requests_total", action="failed") == 1

    asyncio.run(story())


ODD_ANSWERS = [b"", b"[]", b"{", b'{"outputs": 7}', b'{"outputs": [7]}', b'{"outputs":[{"name":"logits","data":[1]}]}']


@pytest.mark.parametrize("body", ODD_ANSWERS)
def test_an_answer_in_another_form_passes_as_it_came(bundle: Path, body: bytes) -> None:
    async def story() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        async with answering(head + body) as url, rest_guarding_at(bundle, url) as guarded:
            found = await guarded.post(BODY)
            assert (found.status_code, found.content) == (200, body)
            assert await guarded.metric("guard_requests_total", action="pass") == 1

    asyncio.run(story())


def test_a_redirection_is_the_clients_to_follow(bundle: Path) -> None:
    async def story() -> None:
        head = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://example.invalid/\r\ncontent-length: 0\r\n\r\n"
        async with answering(head) as url, rest_guarding_at(bundle, url) as guarded:
            found = await guarded.post(BODY)
            assert (found.status_code, found.headers["location"]) == (307, "http://example.invalid/")

    asyncio.run(story())


def test_what_failed_closed_is_503_and_open_passes_marked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        for on_failure in ("closed", "open"):
            async with rest_guarding(bundle, on_failure=on_failure, inspect_timeout_s=1e-6) as guarded:
                answer = await guarded.post(BODY)
                if on_failure == "closed":
                    assert answer.status_code in (429, 503)
                    assert answer.headers["guard-reason"] in ("INSPECTION_TIMEOUT", "OVERLOADED")
                    assert guarded.upstream.bodies == []
                else:
                    assert (answer.status_code, answer.headers["guard-verdict"]) == (200, "unchecked")
                    assert await guarded.metric("guard_requests_total", action="unchecked") == 1

    asyncio.run(story())


def test_waves_of_overload_are_shed_at_once_and_every_request_has_an_answer(bundle: Path) -> None:
    async def story() -> None:
        settings: dict[str, Any] = {"max_queue_rows": 8, "max_bytes_in_flight": 3_000_000, "max_message_bytes": 200_000}
        async with rest_guarding(bundle, **settings) as guarded:
            sent = 0
            for _ in range(3):
                limits = httpx.Limits(max_connections=None)
                async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=30) as client:
                    url = f"http://{guarded.serving.rest_address}/v2/models/tiny/infer"
                    bodies = [json_body(BRIGHT if number % 5 == 0 else ORDINARY) for number in range(100)]
                    answers = await asyncio.gather(*(client.post(url, content=body) for body in bodies))
                sent += len(answers)
                assert {answer.status_code for answer in answers} <= {200, 403, 429}
                assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 429} <= {"1"}
                assert 200 in {answer.status_code for answer in answers}
            assert await guarded.metric("guard_requests_total") == sent
            assert await guarded.metric("guard_http_handled_total", procedure="ModelInfer") == sent
            assert await guarded.metric("guard_bytes_in_flight") == 0
            assert len(guarded.upstream.bodies) == await guarded.metric("guard_requests_total", action="pass")

    asyncio.run(story())


def test_an_upstream_without_a_door_is_an_error(bundle: Path) -> None:
    async def story() -> None:
        settings = {"rest_listen": "", "rest_upstream": "http://127.0.0.1:1"}
        with pytest.raises(ConfigError, match="rest_listen is not set"):
            async with running(config_for(bundle, "127.0.0.1:1", **settings), log=Log("error")):
                pass

    asyncio.run(story())


def test_a_missing_extra_is_an_error_that_names_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        settings = {"rest_listen": "127.0.0.1:0", "rest_upstream": "http://127.0.0.1:1"}
        with pytest.raises(ConfigError, match=r"inference-guard\[rest\]"):
            async with running(config_for(bundle, "127.0.0.1:1", **settings), log=Log("error")):
                pass

    import sys

    for name in [name for name in sys.modules if name.startswith("guard.serve.rest.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    asyncio.run(story())


def test_a_taken_port_is_an_error_that_names_it(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle) as guarded:
            config = config_for(
                bundle, "127.0.0.1:1", rest_listen=str(guarded.serving.rest_address), rest_upstream="http://127.0.0.1:1"
            )
            with pytest.raises(PortError, match=str(guarded.serving.rest_address)):
                async with running(config, log=Log("error")):
                    pass

    asyncio.run(story())


def test_every_error_of_a_request_has_an_http_status_of_its_own_kind() -> None:
    statuses = {leaf.__name__: leaf.http_status for leaf in leaves(RequestError)}  # type: ignore[attr-defined]
    assert 500 not in statuses.values()
    assert all(400 <= status < 600 for status in statuses.values())
    assert [name for name, status in statuses.items() if status == 403] == ["Rejected"]


def test_the_defaults_open_no_rest_door() -> None:
    assert not ServeConfig().rest_listen
