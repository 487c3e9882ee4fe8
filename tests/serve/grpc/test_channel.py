"""How the guard reaches its model server: several addresses, a unix socket, TLS, another name; all of them real."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.certificates import system_roots
from guard.serve.grpc.channel import open_channel, tls_fault
from guard.serve.identities import upstream_identity
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import Guarded, free_port, guarding_at, until
from tests.serve.tap import tapped

ORDINARY = tiny_bundle.ordinary(1)
NAME = "model.internal"


async def answered(guarded: Guarded) -> None:
    answer = await guarded.client.infer(ORDINARY)
    assert answer.ok, answer.details


@pytest.mark.parametrize("scheme", ["dns", "ipv4"])
def test_each_address_gets_requests_in_turn_and_one_that_is_lost_no_more(bundle: Path, scheme: str) -> None:
    async def story() -> None:
        first, second, port = FakeUpstream(), FakeUpstream(), free_port()
        second_host = "[::1]" if scheme == "dns" else "127.0.0.2"
        target = f"dns:///localhost:{port}" if scheme == "dns" else f"ipv4:127.0.0.1:{port},{second_host}:{port}"
        async with listening(first, f"127.0.0.1:{port}"):
            async with (
                listening(second, f"{second_host}:{port}"),
                guarding_at(bundle, target) as guarded,
            ):
                await guarded.until_ready()
                await until(lambda: bool(first.calls and second.calls))  # both are connected: checks take turns, too
                for _ in range(10):
                    await answered(guarded)
                assert (len(first.requests), len(second.requests)) == (5, 5)
            async with guarding_at(bundle, target) as guarded:  # with one of the two away
                await guarded.until_ready()
                for _ in range(4):
                    await answered(guarded)
                assert len(first.requests) == 9

    asyncio.run(story())


def test_one_of_two_model_servers_may_go_and_come_back(bundle: Path) -> None:
    async def story() -> None:
        first, second, ports = FakeUpstream(), FakeUpstream(), (free_port(), free_port())
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        async with listening(first, f"127.0.0.1:{ports[0]}"), guarding_at(bundle, target) as guarded:
            async with listening(second, f"127.0.0.1:{ports[1]}"):
                await guarded.until_ready()
                await until(lambda: bool(second.calls))
            await asyncio.sleep(0.05)  # until the core has seen it go
            for _ in range(6):
                await answered(guarded)
            assert len(first.requests) == 6
            assert guarded.serving.readiness.because is None
            second.calls.clear()
            async with listening(second, f"127.0.0.1:{ports[1]}"):
                await until(lambda: bool(second.calls))  # it is asked again by itself
                for _ in range(6):
                    await answered(guarded)
                assert len(second.requests) == 3

    asyncio.run(story())


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_unix_socket(bundle: Path, tmp_path: Path, form: str) -> None:
    async def story() -> None:
        target, fake = form.format(tmp_path / "model.sock"), FakeUpstream()
        async with guarding_at(bundle, target) as guarded:  # the guard is there first
            async with listening(fake, target):
                await guarded.until_ready()
                await answered(guarded)
                assert len(fake.requests) == 1
            await until(lambda: "cannot be reached" in str(guarded.serving.readiness.because))

    asyncio.run(story())


def test_the_model_server_is_asked_by_the_name_that_is_set(bundle: Path) -> None:
    async def story() -> None:
        async with listening(FakeUpstream()) as upstream, tapped(upstream) as (address, tap):
            for authority in (None, "classifier.models.example.com"):
                async with guarding_at(bundle, address, upstream_authority=authority) as guarded:
                    await guarded.until_ready()
                    await answered(guarded)
                    assert tap.asked("ModelInfer")[-1][":authority"].decode() == (authority or address)

    asyncio.run(story())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a certificate for `NAME` that is its own authority, and of its key."""
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    kind = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    named = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    command = ["openssl", *kind, *named, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def credentials(certificate: tuple[Path, Path]) -> grpc.ServerCredentials:
    chain, key = (file.read_bytes() for file in certificate)
    return grpc.ssl_server_credentials([(key, chain)])


@pytest.mark.parametrize("roots", ["a file", "the system's"])
def test_tls(bundle: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, roots: str) -> None:
    if roots == "the system's":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))  # where OpenSSL looks for them
    ca = str(certificate[0]) if roots == "a file" else None

    async def story() -> None:
        fake = FakeUpstream()
        async with (
            listening(fake, credentials=credentials(certificate)) as upstream,
            tapped(upstream) as (address, tap),
        ):
            settings = {"upstream_tls": True, "upstream_ca": ca, "upstream_authority": NAME}
            async with guarding_at(bundle, address, **settings) as guarded:
                await guarded.until_ready()
                await answered(guarded)
                assert len(fake.requests) == 1
                assert all(sent[:2] == b"\x16\x03" for sent in tap.up)  # a TLS handshake; nothing in the clear
                assert not any(b"ModelInfer" in sent for sent in tap.up)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"upstream_tls": True, "upstream_authority": NAME}, "CERTIFICATE_VERIFY_FAILED"),  # of no known authority
        ({"upstream_tls": True, "upstream_ca": "file"}, "Hostname Verification"),
    ],
)
def test_a_certificate_that_is_not_accepted_lets_nothing_through_and_the_reason_is_said(
    bundle: Path, certificate: tuple[Path, Path], settings: dict[str, object], said: str
) -> None:
    given = {key: str(certificate[0]) if value == "file" else value for key, value in settings.items()}

    async def story() -> None:
        fake = FakeUpstream()
        async with (
            listening(fake, credentials=credentials(certificate)) as address,
            guarding_at(bundle, address, **given) as guarded,
        ):
            await until(lambda: said in str(guarded.serving.readiness.because))
            assert "upstream_ca" in str(guarded.serving.readiness.because)
            answer = await guarded.client.infer(ORDINARY)
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_DOWN")
            assert said not in answer.details  # it is for the operator
            assert fake.calls == []

    asyncio.run(story())


def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    config = ServeConfig(upstream="model:9000", upstream_tls=True)
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate", "utf-8")
    for changes, said in (
        ({"upstream_ca": str(tmp_path / "none.pem")}, "No such file.*wanted a PEM file"),
        ({"upstream_ca": str(empty)}, "holds no certificates"),
        ({"upstream_ca": str(certificate[1])}, "holds no certificates"),  # the key instead
        ({"upstream_ca": str(certificate[0]), "upstream_tls": False}, "set upstream_tls = true"),
        ({"upstream_certificate": str(certificate[0])}, "upstream_key is not"),
        ({"upstream_certificate": str(certificate[0]), "upstream_key": str(empty)}, "holds no private key"),
    ):
        with pytest.raises(ConfigError, match=said):
            upstream_identity(replace(config, **changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="wanted HOST:PORT"):
        open_channel(replace(config, upstream="http://model"), max_message_bytes=1)


def test_system_roots_are_the_first_that_are_there(tmp_path: Path) -> None:
    assert system_roots((None, str(tmp_path / "none"))) is None
    file = tmp_path / "roots.pem"
    file.write_bytes(b"roots")
    assert system_roots((None, str(tmp_path / "none"), str(file))) == b"roots"


def test_only_a_failed_handshake_is_told_as_one() -> None:
    assert tls_fault(None) == tls_fault("Socket closed") == ""
    told = tls_fault("failed to connect to all addresses; last error: UNKNOWN: Tls handshake failed (X)")
    assert "TLS failed: UNKNOWN: Tls handshake failed (X)" in told
