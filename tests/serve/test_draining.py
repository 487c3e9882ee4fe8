"""Draining: clients are told to go elsewhere, what is under way is answered, and no call is lost or CANCELLED."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from guard.errors import ConfigError, NotReadyError
from guard.serve.drain_call import drain
from guard.serve.grpc.goaway import FRAME, Replies, is_quiet, send_goaway
from guard.serve.grpc.wire.guard_pb2 import DrainRequest, DrainResponse
from tests.serve import tiny_bundle
from tests.serve.authority import Authority, client_credentials
from tests.serve.frames import Wire, grpc_headers, message
from tests.serve.frames import goaway as goaway_frame
from tests.serve.guarded import (
    PATIENCE_S,
    Client,
    Guarded,
    calling,
    config_for,
    free_port,
    guarding,
    infer_request,
    until,
)
from tests.serve.processes import ROOT, Process, guard_process, model_process
from tests.serve.sticky_clients import asking

ORDINARY = tiny_bundle.ordinary(1)
INFER = b"/inference.GRPCInferenceService/ModelInfer"
BODY = infer_request(ORDINARY).SerializeToString()
DRAIN = "/guard.v1.Guard/Drain"


async def drained(guarded: Guarded) -> DrainResponse:
    """What the admin listener answers to Drain."""
    async with calling(guarded.serving.admin_address) as admin:
        answer = await admin.call(DRAIN, DrainRequest())
        assert answer.ok, answer
        return DrainResponse.FromString(answer.body)


def begin(wire: Wire) -> int:
    """Send a whole request on a connection, and return its stream."""
    stream = wire.open(grpc_headers(INFER))
    wire.body(stream, message(BODY))
    return stream


def test_the_frame_is_a_goaway_for_streams_that_have_not_begun() -> None:
    assert goaway_frame(2**31 - 1, debug=b"draining") == FRAME


def test_a_client_is_told_and_answered_until_the_drain_is_over(bundle: Path) -> None:
    """One that does not heed the GOAWAY is served too, then sent to another replica; in flight is finished."""

    async def story() -> None:
        async with guarding(bundle, drain_s=2.0, grace_s=10.0) as guarded:
            address = guarded.serving.address
            with Wire(address) as heedless, Wire(address) as held:
                assert (await asyncio.to_thread(heedless.answer, begin(heedless))).status == 0
                guarded.upstream.hang_infer = True
                in_flight = begin(held)
                await until(lambda: guarded.upstream.calls.count("ModelInfer") == 2)
                first = await drained(guarded)
                assert 0 < first.remaining_s <= 2.0
                assert not first.closed
                assert guarded.serving.readiness.because == "the guard is shutting down"
                for wire in (heedless, held):
                    assert await asyncio.to_thread(
                        wire.wait, lambda told=wire: told.goaway is not None, time.monotonic() + PATIENCE_S
                    )
                assert heedless.goaway == held.goaway == 0  # NO_ERROR
                late = begin(heedless)
                await until(lambda: guarded.upstream.calls.count("ModelInfer") == 3)
                async with calling(address) as client:  # who still arrives
                    arriving = asyncio.create_task(client.infer(ORDINARY))
                    await until(lambda: guarded.upstream.calls.count("ModelInfer") == 4)
                    while not (found := await drained(guarded)).closed:
                        assert found.remaining_s <= first.remaining_s
                        await asyncio.sleep(0.02)
                    assert found.calls == 3
                    with pytest.raises(OSError, match="refused"):
                        await asyncio.to_thread(socket.create_connection, ("127.0.0.1", int(address.split(":")[1])))
                    finishing = asyncio.create_task(guarded.serving.drain())
                    guarded.upstream.hang_infer = False
                    assert (await arriving).ok
                for wire, stream in ((held, in_flight), (heedless, late)):
                    assert (await asyncio.to_thread(wire.answer, stream)).status == 0
                await finishing

    asyncio.run(story())


def test_a_drain_begins_once_and_its_end_does_not_wait_again(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, drain_s=1.0) as guarded:
            assert (await guarded.client.infer(ORDINARY)).ok
            began = time.monotonic()
            await drained(guarded)
            await drained(guarded)
            await guarded.serving.drain()
            assert time.monotonic() - began < 2 * 1.0
            assert [line["event"] for line in guarded.events("draining") + guarded.events("drained")] == [
                "draining",
                "drained",
            ]
            assert guarded.events("drained")[0]["told"] == 1

    asyncio.run(story())


def test_answers_as_large_as_a_socket_are_not_torn(bundle: Path) -> None:
    """A GOAWAY within one of gRPC's frames would end the connection, and the calls on it."""

    async def story() -> None:
        async with guarding(bundle, drain_s=1.5) as guarded:
            for number in range(60_000):
                guarded.upstream.metadata.versions.append(f"version-{number:06d}")
            ended, stop = Counter[str](), asyncio.Event()

            async def hammer(client: Client) -> None:
                while not stop.is_set():
                    answer = await client.call("ModelMetadata", b"")
                    ended[answer.code.name if not answer.ok else "OK"] += 1

            async with calling(guarded.serving.address) as one, calling(guarded.serving.address) as two:
                clients = [asyncio.create_task(hammer(client)) for client in (one, two) for _ in range(3)]
                await until(lambda: ended["OK"] > 6)
                await drained(guarded)
                await until(lambda: bool(guarded.serving.inference.told), lambda: f"never quiet: {ended}")
                before = ended["OK"]
                await until(lambda: ended["OK"] > before + 6)
                stop.set()
                await asyncio.gather(*clients)
            assert set(ended) == {"OK"}, ended

    asyncio.run(story())


def test_a_connection_is_quiet_once_settings_came_and_nothing_waits() -> None:
    with socket.socket() as entrance:
        entrance.bind(("127.0.0.1", 0))
        entrance.listen()
        with socket.create_connection(entrance.getsockname()) as client, entrance.accept()[0] as server:
            assert not is_quiet(server)  # the first frame has to be SETTINGS
            server.sendall(bytes(9))
            deadline = time.monotonic() + 5
            while not is_quiet(server):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            server.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    server.send(bytes(65536))
            assert not is_quiet(server)
            assert not send_goaway(server)
            client.setblocking(False)
            while not is_quiet(server):
                with suppress(BlockingIOError):
                    while True:
                        client.recv(65536)
                assert time.monotonic() < deadline
            assert send_goaway(server)
            client.setblocking(True)
            assert client.recv(1_000_000).endswith(FRAME)


def test_replies_know_the_ports_that_answers_are_on_their_way_to() -> None:
    class Context:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

    async def story() -> None:
        replies, go = Replies(), asyncio.Event()

        async def answer(peer: str) -> None:
            replies.begin(bytes(1_000_000), Context(peer))
            replies.begin(b"a small one", Context("ipv4:10.0.0.8:1"))
            await go.wait()

        tasks = [asyncio.create_task(answer(p)) for p in ("ipv4:10.0.0.7:40312", "ipv6:%5B::1%5D:7", "unix:")]
        await asyncio.sleep(0)
        assert replies.ports() == {40312, 7}
        go.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
        assert replies.ports() == set()

    asyncio.run(story())


def command(address: str) -> subprocess.CompletedProcess[str]:
    """`guard drain` as a preStop hook runs it: no shell, the address in a variable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GUARD_ADMIN_LISTEN": address}
    words = [sys.executable, "-m", "guard", "drain"]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_the_command_says_what_happened_and_sigterm_does_not_wait_again(bundle: Path, tmp_path: Path) -> None:
    with model_process(tmp_path) as model:
        upstream = model.until_event("listening")["inference"]
        with guard_process(config_for(bundle, upstream, drain_s=3.0)) as guard:
            listening = guard.until_event("listening")
            guard.until_event("ready")
            with Wire(listening["inference"]) as wire:
                assert wire.answer(begin(wire)).status == 0
                began = time.monotonic()
                done = command(listening["admin"])
                took = time.monotonic() - began
                assert done.returncode == 0, done.stderr
                assert "drained" in done.stdout
                assert "told to connect elsewhere: 1" in done.stdout
                assert took > 2.9
                assert wire.wait(lambda: wire.goaway is not None, time.monotonic() + PATIENCE_S)
            began = time.monotonic()
            guard.popen.send_signal(signal.SIGTERM)
            assert guard.popen.wait(PATIENCE_S) == 0
            assert time.monotonic() - began < 2.9


def test_where_nothing_drains_the_command_fails_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(NotReadyError, match="nothing drains"):
        drain(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 10
    done = command(f"127.0.0.1:{free_port()}")
    assert done.returncode == NotReadyError.exit_code
    assert len(done.stderr.splitlines()) == 1


def test_a_guard_that_hangs_delays_nothing(bundle: Path) -> None:
    with guard_process(config_for(bundle, "127.0.0.1:1", drain_s=30.0)) as guard:
        admin = guard.until_event("listening")["admin"]
        guard.popen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(NotReadyError):
            drain(admin)
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_with_two_addresses_goes_to_the_other_and_loses_nothing(
    bundle: Path, tmp_path: Path, *, tls: bool
) -> None:
    """By TLS it is sent away by its connection's age alone, which has to be less than the drain for that."""
    authority, settings = Authority(), {"drain_s": 1.0, "max_connection_age_s": 0.4 if tls else None}
    if tls:
        certificate, key = authority.issue().write(tmp_path, "guard")
        settings |= {"tls_certificate": certificate, "tls_key": key}

    async def story() -> Counter[str]:
        ended, stop = Counter[str](), asyncio.Event()
        async with guarding(bundle, **settings) as first, guarding(bundle, **settings) as second:
            target = f"ipv4:{first.serving.address},{second.serving.address}"
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
            trusted = client_credentials(authority)
            async with (
                grpc.aio.secure_channel(target, trusted, options)
                if tls
                else grpc.aio.insecure_channel(target, options) as channel
            ):

                async def hammer() -> None:
                    while not stop.is_set():
                        answer = await Client(channel).infer(ORDINARY)
                        ended["OK" if answer.ok else f"{answer.code.name}: {answer.details}"] += 1

                clients = [asyncio.create_task(hammer()) for _ in range(4)]
                await until(lambda: ended["OK"] > 20)
                assert second.upstream.requests == []
                await drained(first)
                await first.serving.drain()
                now = len(second.upstream.requests)
                await until(lambda: len(second.upstream.requests) > now + 20)
                stop.set()
                await asyncio.gather(*clients)
        return ended

    assert set(asyncio.run(story())) == {"OK"}


def test_the_command_bears_a_token_and_speaks_to_a_socket(bundle: Path, tmp_path: Path) -> None:
    token = "a-token-of-many-characters"
    (tmp_path / "tokens").write_text(f"operator {token}\n")
    (tmp_path / "token").write_text(token + "\n")
    (tmp_path / "wrong").write_text("# no token\n")

    async def story() -> None:
        admin = f"unix:{tmp_path}/admin.sock"
        async with guarding(bundle, admin_listen=admin, admin_tokens=str(tmp_path / "tokens"), drain_s=0.2) as guarded:
            with pytest.raises(NotReadyError, match="UNAUTHENTICATED"):
                await asyncio.to_thread(drain, admin)
            with pytest.raises(ConfigError, match="holds no token"):
                await asyncio.to_thread(partial(drain, admin, token_file=tmp_path / "wrong"))
            assert guarded.serving.readiness.because is None
            assert "drained" in await asyncio.to_thread(partial(drain, admin, token_file=tmp_path / "token"))

    asyncio.run(story())


@pytest.mark.slow
def test_a_rolling_restart_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    """Two guards, each drained, ended and started again, while sticky clients of two kinds ask without a pause.

    Each client is with the guard that is drained: it stays where it is until it is told.
    """
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]

    async def hammer(stop: asyncio.Event, ended: Counter[str]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel:
            client = Client(channel)
            while not stop.is_set():
                answer = await client.infer(ORDINARY)
                ended["OK" if answer.ok else f"{answer.code.name}: {answer.details}"] += 1

    async def story(stack: ExitStack, upstream: str) -> tuple[Counter[str], dict[str, int]]:
        def start(address: str) -> tuple[Process, str]:
            guard = stack.enter_context(guard_process(config_for(bundle, upstream, listen=address, drain_s=1.0)))
            admin = str(guard.until_event("listening")["admin"])
            guard.until_event("ready")
            return guard, admin

        def restart(number: int) -> None:
            guard, admin = guards[number]
            done = command(admin)
            assert done.returncode == 0, done.stderr
            guard.popen.send_signal(signal.SIGTERM)
            assert guard.until_event("draining")["connections"] == len(clients) + 4  # they stayed where they had been
            assert guard.popen.wait(PATIENCE_S) == 0
            guards[number] = start(addresses[number])

        guards = [await asyncio.to_thread(start, address) for address in addresses]
        sticky = await asyncio.to_thread(stack.enter_context, asking(addresses, clients=4))
        stop, ended = asyncio.Event(), Counter[str]()
        clients = [asyncio.create_task(hammer(stop, ended)) for _ in range(4)]
        for number in (0, 1, 0):
            await asyncio.to_thread(restart, number)
        stop.set()
        await asyncio.gather(*clients)
        told, _ = await asyncio.to_thread(sticky.communicate)
        return ended, json.loads(told)

    with ExitStack() as stack:
        model = stack.enter_context(model_process(tmp_path))
        upstream = model.until_event("listening")["inference"]
        ended, told = asyncio.run(story(stack, upstream))
    assert set(ended) == set(told) == {"OK"}, (ended, told)
    assert min(ended["OK"], told["OK"]) > 200
