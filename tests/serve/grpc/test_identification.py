"""Callers over the wire: who gets in, what is logged of them, and what the model server learns; the admin socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from guard import cli
from guard.errors import PortError
from guard.serve import rotation
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, client_credentials
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Client, Guarded, calling, config_for, guarding, guarding_at

ORDINARY, BRIGHT = tiny_bundle.ordinary(1), tiny_bundle.bright(1)
TOKEN = "0123456789abcdef"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
XFCC = (("x-forwarded-client-cert", "URI=spiffe://mesh/camera"),)
METADATA = "ServerMetadata"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    file = tmp_path / "tokens"
    file.write_text(f"camera {TOKEN}\n", "utf-8")
    return str(file)


def test_a_token_is_wanted_of_every_call_but_health(bundle: Path, tokens: str) -> None:
    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "allow_methods": ("ModelConfig",)}
        async with guarding(bundle, **settings) as guarded:
            client = guarded.client
            for method in ("ModelInfer", METADATA, "ModelMetadata", "ModelReady", "ModelConfig", REFLECTION):
                answer = await client.call(method, b"")
                assert answer.code is grpc.StatusCode.UNAUTHENTICATED, method
                assert answer.reason == "UNAUTHENTICATED"
                assert "authorization: Bearer TOKEN" in answer.details
            wrong = await client.infer(ORDINARY, metadata=(("authorization", "Bearer 0123456789abcdeg"),))
            assert wrong.code is grpc.StatusCode.UNAUTHENTICATED
            for method in ("ServerLive", "ServerReady", "/grpc.health.v1.Health/Check"):
                assert (await client.call(method, b"")).ok, method
            assert guarded.upstream.requests == []
            assert await guarded.metric("guard_refused_total", reason="unauthenticated") == 2
            assert await guarded.metric("grpc_server_handled_total", grpc_code="UNAUTHENTICATED") >= 2
            for method in (METADATA, "ModelConfig"):
                assert (await client.call(method, b"", metadata=BEARER)).ok, method
            assert (await client.infer(ORDINARY, metadata=BEARER)).ok
            assert not (await client.infer(BRIGHT, metadata=BEARER)).ok
            (told,) = guarded.events("reject")
            assert told["principal"] == "camera"
            assert TOKEN not in guarded.log.getvalue()
            assert all("authorization" not in sent for sent in guarded.upstream.headers)

    asyncio.run(story())


def test_refused_before_the_message_is_read(bundle: Path, tokens: str) -> None:
    """A caller that is not known gives the guard nothing to hold: its refusal does not wait for the message."""

    async def story() -> None:
        async with guarding(bundle, principal_from="bearer", client_tokens=tokens) as guarded:
            start: Any = guarded.client.channel.stream_stream("/inference.GRPCInferenceService/ModelInfer")
            call = start(timeout=5)  # nothing is sent
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(story())


@pytest.mark.parametrize("forward", [False, True])
def test_a_token_goes_on_only_if_told_to(bundle: Path, tokens: str, *, forward: bool) -> None:
    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "forward_token": forward}
        async with guarding(bundle, **settings) as guarded:
            assert (await guarded.client.infer(ORDINARY, metadata=BEARER)).ok
            sent = guarded.upstream.headers[-1]
            assert sent.get("authorization") == (BEARER[0][1] if forward else None)

    asyncio.run(story())


def test_without_a_source_headers_go_on_as_they_came_but_a_forged_certificate(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            assert (await guarded.client.infer(ORDINARY, metadata=(*BEARER, *XFCC))).ok
            sent = guarded.upstream.headers[-1]
            assert sent["authorization"] == BEARER[0][1]  # it may be the model server's own
            assert "x-forwarded-client-cert" not in sent

    asyncio.run(story())


def test_tokens_are_replaced_while_it_serves(bundle: Path, tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "POLL_S", 0.05)

    async def story() -> None:
        async with guarding(bundle, principal_from="bearer", client_tokens=tokens) as guarded:
            other = (("authorization", "Bearer another-token-of-some-length"),)
            Path(tokens).write_text("camera another-token-of-some-length\n", "utf-8")
            async with asyncio.timeout(10):
                while not (await guarded.client.infer(ORDINARY, metadata=other)).ok:
                    await asyncio.sleep(0.01)
            assert not (await guarded.client.infer(ORDINARY, metadata=BEARER)).ok
            Path(tokens).write_text("", "utf-8")
            async with asyncio.timeout(10):
                while not guarded.events("credentials kept"):
                    await asyncio.sleep(0.01)
            assert (await guarded.client.infer(ORDINARY, metadata=other)).ok

    asyncio.run(story())


def test_a_proxy_that_is_trusted_tells_who_calls(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, principal_from="xfcc", trusted_hops=("127.0.0.0/8",)) as guarded:
            assert not (await guarded.client.infer(BRIGHT, metadata=XFCC)).ok
            (told,) = guarded.events("reject")
            assert told["principal"] == "spiffe://mesh/camera"
            assert (await guarded.client.infer(ORDINARY, metadata=XFCC)).ok
            assert guarded.upstream.headers[-1]["x-forwarded-client-cert"] == XFCC[0][1]
            assert (await guarded.client.infer(ORDINARY)).code is grpc.StatusCode.UNAUTHENTICATED
        async with guarding(bundle, principal_from="xfcc", trusted_hops=("10.0.0.0/8",)) as guarded:
            answer = await guarded.client.infer(ORDINARY, metadata=XFCC)
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED
            assert guarded.upstream.requests == []

    asyncio.run(story())


def test_a_certificate_tells_who_calls(bundle: Path, tmp_path: Path) -> None:
    authority = Authority()
    uri, dns = x509.UniformResourceIdentifier("spiffe://mesh/camera"), x509.DNSName("camera.example")
    ca, (certificate, key) = authority.write(tmp_path, "ca.pem"), authority.issue().write(tmp_path, "guard")
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": ca}

    async def story() -> None:
        async with guarding(bundle, principal_from="tls", **settings) as guarded:
            address = guarded.serving.address.replace("127.0.0.1", "localhost")
            for own, name in (
                (authority.issue(dns, uri), "spiffe://mesh/camera"),
                (authority.issue(dns, common_name="c"), "camera.example"),
                (authority.issue(common_name="camera 7"), "camera 7"),
            ):
                async with grpc.aio.secure_channel(address, client_credentials(authority, own)) as channel:
                    assert not (await Client(channel).infer(BRIGHT)).ok
                    assert guarded.events("reject")[-1]["principal"] == name
            nameless = authority.issue(common_name=None)
            async with grpc.aio.secure_channel(address, client_credentials(authority, nameless)) as channel:
                assert (await Client(channel).infer(ORDINARY)).code is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(story())


# the admin listener


@asynccontextmanager
async def described(guarded: Guarded) -> AsyncIterator[Client]:
    async with calling(guarded.serving.admin_address) as client:
        yield client


def test_admin_on_a_unix_socket(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    async def story() -> None:
        async with guarding(bundle, admin_listen=f"unix:{path}") as guarded:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with described(guarded) as client:
                assert (await client.call("/guard.v1.Guard/Describe", b"")).ok
            assert await asyncio.to_thread(cli.run, ["probe", f"unix:{path}"]) == 0
            assert await asyncio.to_thread(cli.run, ["probe", f"unix://{path}"]) == 0

    before = os.umask(0)
    try:
        asyncio.run(story())
    finally:
        os.umask(before)
    assert not path.exists()
    assert cli.run(["probe", f"unix:{path}"]) == 10


def test_what_a_dead_guard_left_is_removed_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()

    async def story() -> None:
        async with guarding(bundle, admin_listen=f"unix:{path}") as guarded, described(guarded) as client:
            with pytest.raises(PortError, match="another server listens"):
                async with second(path):
                    pass
            assert (await client.call("/guard.v1.Guard/Describe", b"")).ok

    @asynccontextmanager
    async def second(at: Path) -> AsyncIterator[None]:
        async with running(config_for(bundle, "127.0.0.1:1", admin_listen=f"unix:{at}"), log=Log("error")):
            yield

    async def refused(at: Path, said: str) -> None:
        with pytest.raises(PortError, match=said):
            async with second(at):
                pass

    asyncio.run(story())
    path.write_text("precious", "utf-8")
    asyncio.run(refused(path, "no socket"))
    assert path.read_text("utf-8") == "precious"
    asyncio.run(refused(tmp_path / "none" / "admin.sock", "directory is not there"))


def test_admin_behind_a_token(bundle: Path, tokens: str) -> None:
    async def story() -> None:
        async with guarding(bundle, admin_tokens=tokens) as guarded, described(guarded) as client:
            for method in ("/guard.v1.Guard/Describe", "/guard.v1.Guard/Inspect", REFLECTION):
                assert (await client.call(method, b"")).code is grpc.StatusCode.UNAUTHENTICATED, method
            assert (await client.call("/guard.v1.Guard/Describe", b"", metadata=BEARER)).ok
            assert await asyncio.to_thread(cli.run, ["probe", guarded.serving.admin_address]) == 0
            assert (await guarded.client.infer(ORDINARY)).ok  # clients need none

    asyncio.run(story())


def test_a_guard_that_reopens_its_socket(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    async def story() -> None:
        fake = FakeUpstream()
        async with (
            listening(fake) as upstream,
            guarding_at(bundle, upstream, fake, admin_listen=f"unix:{path}") as guarded,
        ):
            await guarded.until_ready()
            guarded.serving.admin.lost(RuntimeError("a test"))
            async with asyncio.timeout(10):
                while not guarded.serving.admin.reopened:
                    await asyncio.sleep(0.01)
            async with described(guarded) as client:
                assert (await client.call("/guard.v1.Guard/Describe", b"")).ok

    asyncio.run(story())


def test_guard_drain_by_the_socket_with_a_token(
    bundle: Path, tmp_path: Path, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"unix:{tmp_path}/admin.sock"
    alone, digests, empty = (tmp_path / name for name in ("token", "digests", "empty"))
    alone.write_text(f"{TOKEN}\n", "utf-8")
    digests.write_text(f"camera sha256:{'0' * 64}\n", "utf-8")
    empty.write_text("# nothing\n", "utf-8")

    async def story() -> None:
        async with guarding(bundle, admin_listen=path, admin_tokens=tokens, drain_s=0.1) as guarded:

            async def drain(*flags: str) -> int:
                return await asyncio.to_thread(cli.run, ["drain", path, *flags])

            assert await drain() == 10  # no token
            for file in (digests, empty, tmp_path / "none"):
                assert await drain("--token-file", str(file)) == 2
            assert guarded.events("draining") == []
            assert await drain("--token-file", str(alone)) == 0
            assert guarded.events("drained")
            monkeypatch.setenv("GUARD_ADMIN_LISTEN", path)
            monkeypatch.setenv("GUARD_ADMIN_TOKENS", tokens)
            assert await asyncio.to_thread(cli.run, ["drain"]) == 0  # as a preStop hook, with the guard's own settings

    asyncio.run(story())


def test_guard_drain_by_tls(bundle: Path, tmp_path: Path, tokens: str) -> None:
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path, "guard")
    ca = authority.write(tmp_path, "ca.pem")

    async def story() -> None:
        settings = {"tls_certificate": certificate, "tls_key": key, "admin_tokens": tokens, "admin_listen": "0.0.0.0:0"}
        async with guarding(bundle, drain_s=0.1, **settings) as guarded:
            port = guarded.serving.admin_address.rpartition(":")[2]
            flags = ["--token-file", tokens]
            assert await asyncio.to_thread(cli.run, ["drain", f"localhost:{port}", *flags]) == 10
            assert await asyncio.to_thread(cli.run, ["drain", f"localhost:{port}", *flags, "--ca", ca]) == 0

    asyncio.run(story())


@pytest.mark.parametrize(("listen", "told"), [("0.0.0.0:0", 1), ("127.0.0.1:0", 0)])
def test_tokens_in_the_clear_are_warned_of(bundle: Path, tokens: str, listen: str, told: int) -> None:
    async def story() -> None:
        async with guarding(bundle, principal_from="bearer", client_tokens=tokens, listen=listen) as guarded:
            assert len(guarded.events("tokens in the clear")) == told

    asyncio.run(story())
