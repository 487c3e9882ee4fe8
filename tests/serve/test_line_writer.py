"""A writer of lines makes nobody wait: not for a reader that stalls, nor for one that has gone."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.serve.line_writer import LineWriter, line_writer

LINE = "x" * 999 + "\n"
PIPE_BYTES = 1 << 16


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def read_all(reader: int, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := os.read(reader, size - len(found))):
        found += part
    return found


@pytest.mark.parametrize("blocking", [True, False])
def test_nobody_waits_for_a_reader_that_stalls_and_what_was_taken_is_read_whole(
    pipe: tuple[int, int], *, blocking: bool
) -> None:
    reader, descriptor = pipe
    os.set_blocking(descriptor, blocking)
    writer = LineWriter(descriptor, max_waiting_bytes=10 * len(LINE))
    taken = []
    began = time.monotonic()
    for number in range(500):
        line = f"{number:03d} {LINE}"
        if writer.write(line) == len(line):
            taken.append(line)
        time.sleep(0 if number % 50 else 0.001)  # the thread fills the pipe meanwhile
    assert time.monotonic() - began < 10.0  # not until somebody reads
    assert PIPE_BYTES / len(LINE) < len(taken) < 500
    wanted = "".join(taken).encode()
    assert read_all(reader, len(wanted)) == wanted
    assert writer.write("again\n") == 6  # there is room again
    assert read_all(reader, 6) == b"again\n"
    writer.close()


def test_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.close(reader)
    writer = LineWriter(descriptor)
    for _ in range(5):
        assert writer.write(LINE) == len(LINE)
    writer.close(5.0)
    assert not writer.waiting
    assert writer.thread.is_alive() is False or writer.thread.join(5.0) is None
    assert writer.write(LINE) == 0


def test_what_was_taken_is_written_before_the_end(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(read_all(reader, 200 * len(LINE))))
    with line_writer(descriptor) as writer:
        for _ in range(200):
            writer.write(LINE)
        thread.start()
    os.close(descriptor)
    thread.join(5.0)
    assert found == [200 * LINE.encode()]


def test_the_end_waits_for_a_reader_but_not_long(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    for _ in range(200):
        writer.write(LINE)
    began = time.monotonic()
    writer.close(0.1)
    assert 0.1 <= time.monotonic() - began < 10.0
    assert writer.waiting


@pytest.mark.parametrize("kind", ["pipe", "a container's pipe", "socket"])
def test_whoever_else_writes_to_the_descriptor_does_not_wait_either(
    kind: str, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's core writes to standard error by itself; a container's pipe may not be opened anew."""
    descriptor, held = pipe[1], None
    if kind == "socket":
        held = socket.socketpair()
        descriptor = held[0].fileno()
    elsewhere = os.dup(descriptor)  # as the shell that started the process holds it
    if kind == "a container's pipe":
        monkeypatch.setattr(os, "open", refused)
    with line_writer(descriptor) as writer:
        with pytest.raises(BlockingIOError):
            fill(descriptor)
        assert os.get_blocking(elsewhere) == (kind == "pipe")
        assert writer.write(LINE) == len(LINE)
        if held is not None:
            held[1].close()
        else:
            os.close(pipe[0])  # nobody reads any more, and the writer may end
    assert os.get_blocking(descriptor)
    assert os.get_blocking(elsewhere)
    os.close(elsewhere)
    if held is not None:
        held[0].close()


def fill(descriptor: int) -> None:
    for _ in range(10_000):
        os.write(descriptor, LINE.encode())


def refused(*given: object) -> int:
    raise PermissionError("not yours")


def test_a_file_is_left_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        with line_writer(file.fileno()) as writer:
            writer.write("one\n")
            writer.close()
            os.write(file.fileno(), b"two\n")
        os.write(file.fileno(), b"three\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"
