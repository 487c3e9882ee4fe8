"""TLS on both sides of a guard, real handshakes: who gets in, and certificates that are replaced under load."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from guard import cli
from guard.errors import ConfigError
from guard.serve import rotation, security
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, Pair, client_credentials, server_credentials
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Answered, Client, Guarded, config_for, guarding_at, until
from tests.serve.processes import process

ORDINARY = tiny_bundle.ordinary(1)
OPTIONS: Sequence[tuple[str, Any]] = (("grpc.use_local_subchannel_pool", 1),)
POLL_S = 0.05


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "POLL_S", POLL_S)
    monkeypatch.setattr(security, "RETRY_S", 0.2)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority()


def replace(path: str, content: bytes) -> None:
    """Swap a file by rename, as tools do that care."""
    fresh = Path(f"{path}.new")
    fresh.write_bytes(content)
    fresh.rename(path)


@asynccontextmanager
async def by_tls(guarded: Guarded, trusted: Authority, own: Pair | None = None) -> AsyncIterator[Client]:
    """A client of the guard with a connection of its own."""
    address = guarded.serving.address.replace("127.0.0.1", "localhost")
    async with grpc.aio.secure_channel(address, client_credentials(trusted, own), OPTIONS) as channel:
        yield Client(channel)


async def asked(guarded: Guarded, trusted: Authority, own: Pair | None = None) -> Answered:
    async with by_tls(guarded, trusted, own) as client:
        return await client.infer(ORDINARY)


@asynccontextmanager
async def served_by_tls(
    bundle: Path, folder: Path, authority: Authority, own: Pair | None = None, **settings: Any
) -> AsyncIterator[Guarded]:
    certificate, key = (own or authority.issue()).write(folder, "guard")
    given = {"tls_certificate": certificate, "tls_key": key, **settings}
    fake = FakeUpstream()
    async with listening(fake) as upstream, guarding_at(bundle, upstream, fake, **given) as guarded:
        await guarded.until_ready()
        yield guarded


def test_clients_are_spoken_to_by_tls_and_probes_are_not(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        async with served_by_tls(bundle, tmp_path, authority) as guarded:
            assert (await asked(guarded, authority)).ok
            assert not (await guarded.client.infer(ORDINARY, timeout_s=2)).ok  # in the clear
            assert not (await asked(guarded, Authority())).ok  # which trusts another authority
            for page in ("readyz", "livez", "metrics"):
                url = f"http://{guarded.serving.metrics_address}/{page}"
                assert (await asyncio.to_thread(urllib.request.urlopen, url)).status == 200
            expiry = await guarded.metric("guard_certificate_expiry_timestamp_seconds", setting="tls_certificate")
            assert expiry == pytest.approx(time.time() + 30 * 86400, abs=100)
            ca = authority.write(tmp_path, "ca.pem")
            address = guarded.serving.address.replace("127.0.0.1", "localhost")
            assert await asyncio.to_thread(cli.run, ["probe", address, "--ca", ca]) == 0
            named = ["--ca", ca, "--server-name", "localhost"]
            assert await asyncio.to_thread(cli.run, ["probe", guarded.serving.address, *named]) == 0
            assert await asyncio.to_thread(cli.run, ["probe", address, "--timeout", "1"]) == 10
            assert await asyncio.to_thread(cli.run, ["probe", address, "--tls", "--timeout", "1"]) == 10  # unknown CA
            assert await asyncio.to_thread(cli.run, ["probe", guarded.serving.admin_address]) == 0  # on loopback

    asyncio.run(story())


def test_clients_must_show_a_certificate(
    bundle: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def story() -> None:
        ca = authority.write(tmp_path, "clients.pem")
        async with served_by_tls(bundle, tmp_path, authority, tls_client_ca=ca) as guarded:
            own = authority.issue()
            assert (await asked(guarded, authority, own)).ok
            for wrong in (None, stranger.issue(), authority.issue(days=-1)):
                answer = await asked(guarded, authority, wrong)
                assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert len(guarded.upstream.requests) == 1
            certificate, key = own.write(tmp_path, "probe")
            address = guarded.serving.address.replace("127.0.0.1", "localhost")
            flags = ["--ca", ca, "--certificate", certificate, "--key", key]
            assert await asyncio.to_thread(cli.run, ["probe", address, *flags]) == 0
            assert await asyncio.to_thread(cli.run, ["probe", address, "--ca", ca, "--timeout", "1"]) == 10
            assert await asyncio.to_thread(cli.run, ["probe", address, "--key", key]) == 2

    asyncio.run(story())


async def load(ask: Callable[[], Awaitable[Answered]], answers: list[Answered], stop: asyncio.Event) -> None:
    """One call after the other until told to stop."""
    while not stop.is_set():
        answers.append(await ask())


async def more(answers: list[Answered], calls: int = 6) -> None:
    """Wait for further answers."""
    enough = len(answers) + calls
    await until(lambda: len(answers) >= enough)


def test_the_listeners_certificate_is_replaced_under_load(
    bundle: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    """New connections see the new certificate, and clients of the new authority get in; not one call is lost."""

    async def story() -> None:
        clients = authority.write(tmp_path, "clients.pem")
        async with served_by_tls(bundle, tmp_path, authority, tls_client_ca=clients) as guarded:
            own, other = authority.issue(), stranger.issue()
            stop = asyncio.Event()
            both = Authority()
            both.pem = authority.pem + stranger.pem
            sticking: list[Answered] = []
            returning: list[Answered] = []  # of a client that connects anew for each call, and trusts both
            async with by_tls(guarded, authority, own) as sticky:
                working = [
                    asyncio.create_task(load(lambda: sticky.infer(ORDINARY), sticking, stop)),
                    asyncio.create_task(load(lambda: asked(guarded, both, own), returning, stop)),
                ]
                await more(sticking)
                before = await guarded.metric("guard_certificate_expiry_timestamp_seconds", setting="tls_certificate")
                replace(clients, authority.pem + stranger.pem)
                fresh = stranger.issue(days=90)
                Path(f"{tmp_path}/guard.crt").write_bytes(fresh.chain)  # one after the other
                await asyncio.sleep(POLL_S * 0.9)
                Path(f"{tmp_path}/guard.key").write_bytes(fresh.key)
                await until(lambda: bool(guarded.events("credentials replaced")))
                assert (await asked(guarded, stranger, other)).ok
                assert not (await asked(guarded, authority, own)).ok  # the old certificate is gone
                after = await guarded.metric("guard_certificate_expiry_timestamp_seconds", setting="tls_certificate")
                assert after - before == pytest.approx(60 * 86400, abs=100)
                await asyncio.gather(more(sticking), more(returning))
                stop.set()
                await asyncio.gather(*working)
            assert [answer.details for answer in (*sticking, *returning) if not answer.ok] == []
            assert await guarded.metric("guard_credential_reloads_total", outcome="replaced") == 1

    asyncio.run(story())


def test_a_bad_new_file_keeps_the_old_one(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        async with served_by_tls(bundle, tmp_path, authority) as guarded:
            key = str(tmp_path / "guard.key")
            replace(key, authority.issue().key)
            await until(lambda: bool(guarded.events("credentials kept")))
            (told,) = guarded.events("credentials kept")
            assert "does not belong to" in told["cause"]
            assert (told["level"], told["setting"]) == ("error", "tls_certificate")
            assert (await asked(guarded, authority)).ok
            assert await guarded.metric("guard_credential_reloads_total", outcome="refused") == 1
            Path(key).unlink()
            await until(lambda: len(guarded.events("credentials kept")) == 2)
            assert (await asked(guarded, authority)).ok
            assert guarded.serving.readiness.because is None

    asyncio.run(story())


def test_the_end_of_a_certificate_is_told_before_it_comes(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        async with served_by_tls(bundle, tmp_path, authority, authority.issue(days=3)) as guarded:
            (told,) = guarded.events("certificate expiry")
            assert (told["level"], told["setting"]) == ("warning", "tls_certificate")
            assert "ends in 3.0 days" in told["warning"]
            for days, level, words in ((0.5, "warning", "0.5 days"), (-1, "error", "has ended")):
                pair = authority.issue(days=days)
                replace(str(tmp_path / "guard.crt"), pair.chain)
                replace(str(tmp_path / "guard.key"), pair.key)
                await until(lambda words=words: words in str(guarded.events("certificate expiry")))  # type: ignore[misc]
                assert guarded.events("certificate expiry")[-1]["level"] == level

    asyncio.run(story())


# towards the model server


@asynccontextmanager
async def in_front_of_tls(
    bundle: Path, folder: Path, authority: Authority, *, clients: Authority | None = None, **settings: Any
) -> AsyncIterator[Guarded]:
    """A guard whose model server speaks TLS, and asks for certificates of `clients`."""
    certificate, key = authority.issue().write(folder, "own")
    ca = authority.write(folder, "ca.pem")
    given = {"upstream_certificate": certificate, "upstream_key": key} if clients is not None else {}
    fake = FakeUpstream()
    credentials = server_credentials(authority.issue(), clients)
    async with (
        listening(fake, credentials=credentials) as upstream,
        guarding_at(
            bundle,
            upstream.replace("127.0.0.1", "localhost"),
            fake,
            **{"upstream_tls": True, "upstream_ca": ca, **given, **settings},
        ) as guarded,
    ):
        yield guarded


def test_the_model_server_may_ask_for_a_certificate(
    bundle: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def story() -> None:
        async with in_front_of_tls(bundle, tmp_path, authority, clients=authority) as guarded:
            await guarded.until_ready()
            assert (await guarded.client.infer(ORDINARY)).ok
            for setting in ("upstream_certificate", "upstream_ca"):
                assert await guarded.metric("guard_certificate_expiry_timestamp_seconds", setting=setting) > 0
        async with in_front_of_tls(bundle, tmp_path, authority, clients=stranger) as guarded:
            await until(lambda: "cannot be reached" in str(guarded.serving.readiness.because))
            assert not (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


def test_the_guards_own_certificate_is_replaced_under_load(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    """One that the model server does not take changes nothing; the next that it takes is used, and no call is lost."""

    async def story() -> None:
        async with in_front_of_tls(bundle, tmp_path, authority, clients=authority) as guarded:
            await guarded.until_ready()
            stop = asyncio.Event()
            answers: list[Answered] = []
            ask = partial(guarded.client.infer, ORDINARY)
            working = [asyncio.create_task(load(ask, answers, stop)) for _ in range(4)]
            channels = [guarded.serving.upstream_channels.current]
            for issuer, event in ((authority, "replaced"), (Authority(), "kept"), (authority, "replaced")):
                seen = len(guarded.events(f"credentials {event}"))
                pair = issuer.issue(days=90)
                replace(str(tmp_path / "own.crt"), pair.chain)
                replace(str(tmp_path / "own.key"), pair.key)
                await until(lambda e=event, n=seen: len(guarded.events(f"credentials {e}")) > n)  # type: ignore[misc]
                channels.append(guarded.serving.upstream_channels.current)
                await more(answers)
                assert guarded.serving.readiness.because is None
            assert channels[0] is not channels[1]
            assert channels[1] is channels[2]
            assert channels[2] is not channels[3]
            stop.set()
            await asyncio.gather(*working)
            assert [answer.details for answer in answers if not answer.ok] == []
            await until(lambda: not guarded.serving.upstream_channels.closing)  # the old ones have ended
            for outcome, count in (("replaced", 2), ("refused", 1)):
                found = await guarded.metric(
                    "guard_credential_reloads_total", setting="upstream_certificate", outcome=outcome
                )
                assert found == count

    asyncio.run(story())


def test_the_model_servers_authority_is_replaced(
    bundle: Path, tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    """The model server comes back with a certificate of another authority: the guard follows its file."""

    async def story() -> None:
        async with in_front_of_tls(bundle, tmp_path, authority) as guarded:
            await guarded.until_ready()
        ca, fake = authority.write(tmp_path, "ca.pem"), FakeUpstream()
        async with listening(fake, credentials=server_credentials(stranger.issue())) as upstream:
            address = upstream.replace("127.0.0.1", "localhost")
            async with guarding_at(bundle, address, fake, upstream_tls=True, upstream_ca=ca) as guarded:
                await until(lambda: "TLS failed" in str(guarded.serving.readiness.because))
                replace(ca, stranger.pem)
                await guarded.until_ready()
                assert (await guarded.client.infer(ORDINARY)).ok

    asyncio.run(story())


def test_a_long_call_ends_on_the_channel_that_it_began_on(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    async def story() -> None:
        settings = {"allow_methods": ("ModelConfig",)}
        async with in_front_of_tls(bundle, tmp_path, authority, clients=authority, **settings) as guarded:
            await guarded.until_ready()
            guarded.upstream.hang_infer = True
            long = asyncio.create_task(guarded.client.infer(ORDINARY))
            await until(lambda: bool(guarded.upstream.requests) or "ModelInfer" in guarded.upstream.calls)
            pair = authority.issue()
            replace(str(tmp_path / "own.crt"), pair.chain)
            replace(str(tmp_path / "own.key"), pair.key)
            await until(lambda: bool(guarded.events("credentials replaced")))
            await asyncio.sleep(0.05)
            assert not long.done()
            assert len(guarded.serving.upstream_channels.closing) == 1
            long.cancel()
            await until(lambda: not guarded.serving.upstream_channels.closing)

    asyncio.run(story())


# admin


def test_admin_beyond_loopback_needs_a_token_and_tls(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue().write(tmp_path, "guard")
    tokens = tmp_path / "tokens"
    tokens.write_text("operator 0123456789abcdef\n", "utf-8")

    async def start(**settings: Any) -> None:
        async with running(config_for(bundle, "127.0.0.1:1", **settings), log=Log("error")):
            pass

    tls = {"tls_certificate": certificate, "tls_key": key}
    for settings in ({}, {"admin_tokens": str(tokens)}, tls):
        with pytest.raises(ConfigError, match="unix:PATH"):
            asyncio.run(start(admin_listen="0.0.0.0:0", **settings))

    async def story() -> None:
        settings = {"admin_listen": "0.0.0.0:0", "admin_tokens": str(tokens)}
        async with served_by_tls(bundle, tmp_path, authority, **settings) as guarded:
            address = guarded.serving.admin_address.replace("0.0.0.0", "localhost")
            async with grpc.aio.secure_channel(address, client_credentials(authority), OPTIONS) as channel:
                client = Client(channel)
                describe = "/guard.v1.Guard/Describe"
                assert (await client.call(describe, b"")).code is grpc.StatusCode.UNAUTHENTICATED
                metadata = (("authorization", "Bearer 0123456789abcdef"),)
                assert (await client.call(describe, b"", metadata=metadata)).ok

    asyncio.run(story())


# the drain


def test_a_drain_breaks_no_connection(bundle: Path, tmp_path: Path, authority: Authority) -> None:
    """The frame that tells plain clients to go elsewhere would be no record of TLS."""

    async def story() -> None:
        async with served_by_tls(bundle, tmp_path, authority, drain_s=3.0) as guarded:
            stop = asyncio.Event()
            answers: list[Answered] = []
            async with by_tls(guarded, authority) as client:
                working = asyncio.create_task(load(lambda: client.infer(ORDINARY), answers, stop))
                await more(answers)
                draining = asyncio.create_task(guarded.serving.drain())
                await until(lambda: bool(guarded.events("draining")))
                await more(answers)
                await asyncio.sleep(0.05)  # several looks for clients that are still to be told
                await more(answers)
                stop.set()
                await working
                assert [answer.details for answer in answers if not answer.ok] == []
                assert not draining.done()
            await draining

    asyncio.run(story())


# the whole process


def test_a_stranger_who_shakes_hands_in_vain_writes_no_line_of_the_log(
    bundle: Path, tmp_path: Path, authority: Authority
) -> None:
    """gRPC's core would write one for each connection, in a form of its own."""
    certificate, key = authority.issue().write(tmp_path, "guard")
    listens = [f"{name} = '127.0.0.1:0'" for name in ("listen", "metrics_listen")]
    given = {"bundle": bundle, "upstream": "127.0.0.1:1", "tls_certificate": certificate, "tls_key": key}
    settings = [*listens, f"admin_listen = 'unix:{tmp_path}/admin.sock'", "drain_s = 0"]
    settings += [f"{name} = '{value}'" for name, value in given.items()]
    (tmp_path / "guard.toml").write_text("\n".join(settings), "utf-8")
    code = "import json, sys\nfrom guard.cli import run\nsys.exit(run(json.loads(sys.argv[1])['arguments']))"
    with process(code, {"arguments": ["serve", "--config", str(tmp_path / "guard.toml")]}) as started:
        host, port = started.until_event("listening")["inference"].split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with suppress(OSError):
                    client.recv(100)
        assert asyncio.run(lives(f"localhost:{port}", authority))
        started.popen.terminate()
        started.until_event("draining")  # every line up to here was JSON
        assert started.popen.wait(20) == 0


async def lives(address: str, authority: Authority) -> bool:
    async with grpc.aio.secure_channel(address, client_credentials(authority), OPTIONS) as channel:
        return (await Client(channel).call("ServerLive", b"")).ok
