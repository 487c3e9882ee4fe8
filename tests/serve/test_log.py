"""Log lines are JSON, and of the level that was asked for."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

from guard.serve.log import Bridge, Log
from guard.serve.readiness import Readiness


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
