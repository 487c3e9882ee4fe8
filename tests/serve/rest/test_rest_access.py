"""The REST door beside the guard's other promises: TLS both ways, tokens, a drain, several models, held answers."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import httpx
import pytest

from guard.errors import RequestError, leaves
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import fake_upstream
from tests.serve.authority import Authority
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import config_for, until
from tests.serve.rest.fake_rest_upstream import FakeRestUpstream, listening
from tests.serve.rest.rest_guarded import BRIGHT, INFER, ORDINARY, json_body, rest_guarding, rest_guarding_at

BODY = json_body(ORDINARY)


def test_every_error_has_its_row_in_the_operating_reference(root: Path) -> None:
    text = (root / "guard/serve/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| ([\w, ]+) \|", text, flags=re.MULTILINE)
    told = {name: int(status) for status, names in rows for name in names.split(", ")}
    assert told == {leaf.__name__: leaf.http_status for leaf in leaves(RequestError) if issubclass(leaf, RequestError)}


def test_a_token_names_the_caller_and_does_not_go_up(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("camera secret-of-the-camera-0123456789\n")
    tokens.chmod(0o600)

    async def story() -> None:
        async with rest_guarding(bundle, principal_from="bearer", client_tokens=str(tokens)) as guarded:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic YTpi"}):
                answer = await guarded.post(BODY, headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["guard-reason"] == "UNAUTHENTICATED"
                assert (await guarded.client.get("/v2/models/tiny", headers=headers)).status_code == 401
            assert guarded.upstream.bodies == []
            assert (await guarded.client.get("/v2/health/ready")).status_code == 200
            mine = {"authorization": "Bearer secret-of-the-camera-0123456789"}
            assert (await guarded.post(BODY, mine)).status_code == 200
            assert "authorization" not in dict(guarded.upstream.headers[0])
            assert (await guarded.post(json_body(BRIGHT), mine)).status_code == 403
            (line,) = guarded.events("reject")
            assert line["principal"] == "camera"

    asyncio.run(story())


def test_tls_towards_clients_and_towards_the_model_server(bundle: Path, tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority()
    certificate, key = authority.issue().write(tmp_path, "guard")
    server = authority.issue().write(tmp_path, "server")
    ca = authority.write(tmp_path, "ca.pem")
    upstream_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    upstream_tls.load_cert_chain(*server)

    async def story() -> None:
        fake = FakeRestUpstream()
        async with listening(fake, tls=upstream_tls) as url, fake_upstream.listening(FakeUpstream()) as address:
            port = url.rpartition(":")[2]
            config = config_for(
                bundle,
                address,
                rest_listen="127.0.0.1:0",
                rest_upstream=f"https://localhost:{port}",
                tls_certificate=certificate,
                tls_key=key,
                upstream_tls=True,
                upstream_ca=ca,
            )
            async with running(config, log=Log("error")) as serving:
                await until(lambda: serving.readiness.part("rest_upstream") is None)
                mine = f"https://localhost:{str(serving.rest_address).rpartition(':')[2]}"
                for trusted, enters in ((authority, True), (stranger, False)):
                    verify = ssl.create_default_context(cadata=trusted.pem.decode())
                    async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
                        if enters:
                            assert (await client.post(f"{mine}{INFER}", content=BODY)).status_code == 200
                        else:
                            with pytest.raises(httpx.ConnectError):
                                await client.post(f"{mine}{INFER}", content=BODY)
                assert fake.bodies == [BODY]

    asyncio.run(story())


def test_a_model_server_of_a_stranger_gets_nothing(bundle: Path, tmp_path: Path) -> None:
    stranger = Authority()
    upstream_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    upstream_tls.load_cert_chain(*stranger.issue().write(tmp_path, "server"))

    async def story() -> None:
        fake = FakeRestUpstream()
        async with listening(fake, tls=upstream_tls) as url:
            target = f"https://localhost:{url.rpartition(':')[2]}"
            async with rest_guarding_at(bundle, target) as guarded:
                assert (await guarded.post(BODY)).status_code == 502
                assert fake.bodies == []

    asyncio.run(story())


def test_a_drain_tells_clients_to_leave_and_loses_no_request(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, drain_s=0.5) as guarded:
            assert "connection" not in (await guarded.post(BODY)).headers
            statuses = []
            draining = asyncio.create_task(guarded.serving.drain())
            await until(lambda: guarded.serving.readiness.because is not None)
            answer = await guarded.post(BODY)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert (await guarded.client.get("/v2/health/ready")).status_code == 503
            while not draining.done():
                try:
                    statuses.append((await guarded.post(BODY)).status_code)
                except httpx.ConnectError:  # it accepts no more
                    break
            await draining
            assert statuses
            assert set(statuses) == {200}

    asyncio.run(story())


def test_what_is_under_way_ends_with_its_answer_in_a_drain(bundle: Path) -> None:
    async def story() -> None:
        fake = FakeRestUpstream(slow_s=0.7)
        async with rest_guarding(bundle, fake, drain_s=0.0, grace_s=10.0) as guarded:
            under_way = asyncio.create_task(guarded.post(BODY))
            await until(lambda: len(fake.bodies) == 1)
            await guarded.serving.drain()
            assert (await under_way).status_code == 200

    asyncio.run(story())


def test_several_models_behind_one_door(bundle: Path, tmp_path: Path) -> None:
    """The path names the model, and its table says what becomes of a verdict."""
    from guard.model_config import ModelConfig

    async def story() -> None:
        models = tuple(
            ModelConfig(bundle=str(bundle), key=key, mode=mode)  # type: ignore[arg-type]
            for key, mode in (("tiny", "enforce"), ("other", "shadow"))
        )
        async with rest_guarding(bundle, models=models) as guarded:
            for name, status in (("tiny", 403), ("other", 200)):
                answer = await guarded.post(json_body(BRIGHT), path=f"/v2/models/{name}/infer")
                assert answer.status_code == status
            assert (await guarded.post(json_body(BRIGHT), path="/v2/models/third/infer")).status_code == 404
            assert await guarded.metric("guard_requests_total", model="other", action="would_reject") == 1

    asyncio.run(story())
