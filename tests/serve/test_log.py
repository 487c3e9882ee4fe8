"""Log lines are JSON, and of the level that was asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.serve.log import MAX_MESSAGE_CHARACTERS, Bridge, Log, Seldom
from guard.serve.readiness import Readiness
from guard.serve.tracing import service_name


def test_lines_are_json_of_at_least_the_level() -> None:
    stream = io.StringIO()
    log = Log("warning", stream)
    log.info("ready")
    log.warning("unchecked", id="1", where=Path("a"))
    log.error("watcher", text="two\nlines")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [("warning", "unchecked"), ("error", "watcher")]
    assert lines[0]["where"] == "a"
    assert lines[0]["time"].endswith("+00:00")


def test_lines_have_the_fields_that_collectors_look_for() -> None:
    stream = io.StringIO()
    log = Log("debug", stream, service="guard-of-digits")
    log.info("ready")
    log.warning("few messages", warning="only 2 at once")
    log.error("reload failed", cause="x" * 5000)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {(line["logger"], line["service.name"]) for line in lines} == {("guard", "guard-of-digits")}
    assert [line["msg"] for line in lines[:2]] == ["ready", "few messages: only 2 at once"]
    assert lines[2]["msg"].startswith("reload failed: xxx")
    assert len(lines[2]["msg"]) <= MAX_MESSAGE_CHARACTERS
    assert all(list(line)[:6] == ["time", "level", "event", "msg", "logger", "service.name"] for line in lines)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "guard"),
        ({"OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, "a"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k=v, service.name=b%20c"}, "b c"),
        ({"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": "odd,service.name="}, "guard"),
    ],
)
def test_the_services_name_is_that_of_its_traces(environment: dict[str, str], name: str) -> None:
    assert service_name(environment) == name


class Full:
    """A stream that takes texts while it has room for them."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, ""

    def write(self, text: str) -> int:
        if len(text) > self.room:
            return 0
        self.room -= len(text)
        self.taken += text
        return len(text)

    def flush(self) -> None:
        pass


def test_lines_that_found_no_room_are_counted_and_told_once_there_is_some() -> None:
    stream, lost = Full(180), []
    log = Log("info", stream)
    log.lost = lambda: lost.append(1)
    for number in range(4):
        log.info("reject", number=number)
    assert len(lost) == 3
    stream.room = 10_000
    log.info("ready")
    log.info("stopped")
    told = [json.loads(line) for line in stream.taken.splitlines()]
    assert [line["event"] for line in told] == ["reject", "lines lost", "ready", "stopped"]
    assert told[1]["lines"] == len(lost)


def test_a_library_speaks_json_too() -> None:
    stream = io.StringIO()
    logger = logging.Logger("grpc._cython")
    logger.addHandler(Bridge(Log("info", stream)))
    logger.info("small talk")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("it broke %d times", 3)
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["logger"], line["message"]) == ("grpc._cython", "it broke 3 times")
    assert "why" in line["cause"]


def test_readiness_has_a_reason_until_every_part_is_ready() -> None:
    readiness = Readiness()
    heard: list[str | None] = []
    readiness.listeners.append(heard.append)
    seen: list[str | None] = [readiness.because]
    for part, reason in (
        ("upstream", None),
        ("engine", None),
        ("engine", None),
        ("upstream", "gone"),
        ("drain", "shutting down"),
    ):
        readiness.say(part, reason)
        seen.append(readiness.because)
    loading = "the programs are being loaded"
    assert seen == [loading, loading, None, None, "gone", "shutting down"]
    assert heard == [loading, None, "gone", "shutting down"]  # only what changed


def test_every_call_of_a_flood_is_told_of_soon() -> None:
    """10,000 calls within 0.1 s, and then silence: what the lines stand for adds up a moment later, not hours."""
    log = Log("info", io.StringIO())
    seldom, told = Seldom(0.05, log), []

    def line(name: int) -> Callable[[int], None]:
        return lambda held_back: told.append((name, held_back))

    for number in range(10_000):
        seldom.tell("overloaded", number * 1e-5, line(number))
    assert sum(1 + held_back for _, held_back in told) < 10_000
    log.catch_up(0.0999)
    lines = len(told)
    log.catch_up(0.2)
    assert sum(1 + held_back for _, held_back in told) == 10_000
    assert told[-1][0] == 9999  # the last one, in whose name it is told
    assert lines + 1 == len(told) <= 4
    log.catch_up()
    assert lines + 1 == len(told)
    seldom.tell("overloaded", 1e9, line(0))
    seldom.tell("overloaded", 1e9, line(1))
    log.catch_up()
    assert told[-2:] == [(0, 0), (1, 0)]
