"""Many of gRPC's events wake the event loop once."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from guard.serve import event_loop, model_server, server
from guard.serve.event_loop import MAX_UNLOOKED_READS, EventLoop, SocketReader
from tests.serve import tiny_bundle
from tests.serve.guarded import config_for


def test_a_reader_that_takes_one_byte_finds_the_last() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        taken: list[bytes] = []
        drain = SocketReader(ours, lambda: taken.append(ours.recv(1)))
        theirs.sendall(b"1" * 100)
        drain()
        theirs.sendall(b"2")
        drain()
        assert taken == [b"1", b"2"]
        drain = SocketReader(ours, lambda: taken.append(b"none"))
        drain()  # a wake without a byte is the library's to handle
        assert taken[2:] == [b"none"]


def test_a_burst_after_single_events_costs_few_turns() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        taken: list[bytes] = []
        drain = SocketReader(ours, lambda: taken.append(ours.recv(1)))
        for _ in range(100):
            theirs.sendall(b"1")
            drain()
        for _ in range(3):
            theirs.sendall(b"x" * 500 + b"2")
            turns = 0
            while taken[-1:] != [b"2"]:
                drain()
                turns += 1
            assert turns <= MAX_UNLOOKED_READS + 1
            taken.append(b"next")


def test_grpcs_own_reader_is_told_from_all_others(monkeypatch: Any) -> None:
    seen: list[str] = []
    monkeypatch.setattr(event_loop, "SocketReader", lambda _, read: lambda: (seen.append("grpc"), read()))

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop, read = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(ours, partial(lambda event: (seen.append("other"), event.set()), read))
            theirs.sendall(b"1")
            await read.wait()
            loop.remove_reader(ours)
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await channel.unary_unary("/a/b")(b"")
        await server.stop(0)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(main())
    assert seen[0] == "other"
    assert set(seen[1:]) == {"grpc"}


def test_both_servers_run_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[type] = []

    async def noted(*_: Any) -> None:
        loops.append(type(asyncio.get_running_loop()))

    for module in (server, model_server):
        monkeypatch.setattr(module, "serve_until_signal", noted)
    server.serve(config_for(tmp_path, "127.0.0.1:1"))
    assert loops == [EventLoop]
    file = tmp_path / "tiny.onnx"
    file.write_bytes(tiny_bundle.classifier())
    model_server.serve_model(file, listen="127.0.0.1:0")
    assert loops == [EventLoop, EventLoop]
