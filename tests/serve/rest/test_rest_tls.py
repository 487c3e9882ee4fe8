"""TLS for HTTP: who gets in, whom the application sees, and certificates that are replaced while it listens."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from guard.config import ServeConfig
from guard.serve.event_loop import EventLoop
from guard.serve.identities import listener_identity, upstream_identity
from guard.serve.rest.listener import listening
from guard.serve.rest.tls import PEER, FollowingContext, client_context, server_context
from tests.serve.authority import Authority, Pair

NAMES = (x509.DNSName("camera.example"), x509.UniformResourceIdentifier("spiffe://mesh/camera"))


async def peer(request: Request) -> PlainTextResponse:
    found = getattr(request.state, PEER)
    return PlainTextResponse(" ".join((found.address, *found.names)))


APPLICATION = Starlette(routes=[Route("/", peer)])


def context(authority: Authority, own: tuple[str, str] | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=authority.pem.decode())
    if own is not None:
        made.load_cert_chain(*own)
    return made


async def asked(address: str, verify: ssl.SSLContext, scheme: str = "https") -> str:
    """What the application saw of a client of its own connection; the error's name where it did not get in."""
    async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
        try:
            return (await client.get(f"{scheme}://{address.replace('127.0.0.1', 'localhost')}/")).text
        except httpx.HTTPError as error:
            return type(error).__name__


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, EventLoop], ids=["asyncio", "ours"])
def test_clients_by_certificate_and_one_that_is_replaced(tmp_path: Path, loop: type[asyncio.AbstractEventLoop]) -> None:
    authority, other = Authority(), Authority()

    def written(pair: Pair, name: str) -> tuple[str, str]:
        return pair.write(tmp_path, name)

    async def story() -> None:
        certificate, key = written(authority.issue(), "guard")
        ca = authority.write(tmp_path, "ca.pem")
        config = ServeConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=ca, grace_s=0)
        identity = listener_identity(config)
        assert identity is not None
        async with listening(
            "127.0.0.1:0", APPLICATION, config, FollowingContext(identity, server_context)
        ) as listener:
            named = written(authority.issue(*NAMES, common_name="c"), "named")
            seen = await asked(listener.address, context(authority, named))
            assert seen == "127.0.0.1 spiffe://mesh/camera camera.example c"
            for refused in (context(authority), context(authority, written(other.issue(), "stranger"))):
                assert await asked(listener.address, refused) in ("ConnectError", "ReadError", "RemoteProtocolError")
            assert (await asked(listener.address, context(authority), "http")).endswith("Error")
            written(other.issue(), "guard")
            other.write(tmp_path, "ca.pem")
            assert identity.poll() == "replaced"
            theirs = written(other.issue(common_name="localhost"), "theirs")
            assert await asked(listener.address, context(other, theirs)) == "127.0.0.1 localhost localhost"
            assert (await asked(listener.address, context(authority, named))).endswith("Error")
            both = Authority()
            both.pem = authority.pem + other.pem
            assert (await asked(listener.address, context(both, named))).endswith("Error")  # its authority is gone

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


def test_the_model_server_may_ask_for_a_certificate_and_both_are_replaced(tmp_path: Path) -> None:
    """The guard's own end: it trusts the authority of its file, and shows the certificate of that moment."""
    authority, other = Authority(), Authority()
    names = {"upstream_certificate": "own.crt", "upstream_key": "own.key", "upstream_ca": "roots.pem"}
    config = ServeConfig(
        rest_upstream="https://localhost:1",
        tls_client_ca=str(tmp_path / "ca.pem"),
        tls_certificate=str(tmp_path / "server.crt"),
        tls_key=str(tmp_path / "server.key"),
        **{name: str(tmp_path / file) for name, file in names.items()},
        grace_s=0,
    )

    def write(issuer: Authority, name: str) -> None:
        issuer.issue().write(tmp_path, "server")
        issuer.issue(common_name=name).write(tmp_path, "own")
        for file in ("ca.pem", "roots.pem"):
            issuer.write(tmp_path, file)

    async def story() -> None:
        write(authority, "guard 1")
        server, own = listener_identity(config), upstream_identity(config)
        assert server is not None
        assert own is not None
        following = FollowingContext(own, client_context)
        async with listening("127.0.0.1:0", APPLICATION, config, FollowingContext(server, server_context)) as listener:
            assert await asked(listener.address, following) == "127.0.0.1 guard 1"
            write(other, "guard 2")
            assert server.poll() == "replaced"
            assert await asked(listener.address, following) == "ConnectError"
            assert own.poll() == "replaced"
            assert await asked(listener.address, following) == "127.0.0.1 guard 2"

    asyncio.run(story())


def test_in_the_clear(tmp_path: Path) -> None:
    async def story() -> None:
        async with listening("127.0.0.1:0", APPLICATION, ServeConfig(grace_s=0)) as listener:
            assert await asked(listener.address, context(Authority()), "http") == "127.0.0.1"

    asyncio.run(story())
