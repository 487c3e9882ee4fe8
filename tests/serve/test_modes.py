"""README's table of modes, cell by cell: each is held against a guard in that mode, with a client and a model server.

How it works. A cell is a phrase ("passed, counted as `flag`"); some depend on a setting ("as `on_failure` says"). Every
mode runs with two sets of settings. A request for each column is sent, and what became of it must be what the phrase
means; a phrase that is not listed here fails.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest

from guard.bundle import Bundle
from guard.policy import Mode
from guard.runtime import Runtime
from tests.layering import ROOT
from tests.serve import tiny_bundle
from tests.serve.guarded import PATIENCE_S, Guarded, guarding, infer_request, until

COLUMNS = (
    "ModelInfer, judged an attack",
    "flagged",
    "not inspectable by its form",
    "the guard failed to check",
    "other methods",
)
ACTIONS = ("pass", "flag", "repair", "reject", "would_flag", "would_repair", "would_reject", "unchecked", "refused")
UNSTABLE = ", and not stable when repaired"
SETTINGS: tuple[dict[str, Any], ...] = (
    {"repair": None, "on_failure": "closed"},
    {"repair": "steps", "on_failure": "open", "allow_methods": ("ModelConfig",)},
)


def table() -> dict[str, dict[str, str]]:
    """README's cells by mode and column; "the same" is what stands above it."""
    _, head, rest = (ROOT / "README.md").read_text("utf-8").partition("| `mode` | ModelInfer")
    rows = (head + rest.partition("\n\n")[0]).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    found: dict[str, dict[str, str]] = {}
    above: dict[str, str] = {}
    for mode, *given in cells[2:]:
        named = dict(zip(cells[0][1:], given, strict=True))
        above = {column: above[column] if cell == "the same" else cell for column, cell in named.items()}
        found[mode.strip("`")] = above
    return found


TABLE = table()


def test_every_mode_has_its_row_and_every_column_its_request() -> None:
    assert list(TABLE) == list(get_args(Mode))
    assert {tuple(row) for row in TABLE.values()} == {COLUMNS}


@dataclass(frozen=True)
class Seen:
    """What became of one request, for its client, the model server and the operator."""

    code: grpc.StatusCode
    verdict: str | bytes | None  # that the client is told
    forwarded: bool
    changed: bool
    counted: str
    why_unchecked: str | None

    @property
    def passed(self) -> bool:
        return self.code is grpc.StatusCode.OK and self.forwarded

    @property
    def unchecked(self) -> bool:
        return self.passed and not self.changed and self.verdict == self.counted == "unchecked"


def means(phrase: str) -> Callable[[Seen], bool]:
    """The test of what a phrase says."""
    if counted := re.fullmatch(r"passed, counted as `(\w+)`", phrase):
        return lambda seen: (
            seen.passed and not seen.changed and (seen.counted, seen.verdict) == (counted.group(1), "pass")
        )
    phrases: Mapping[str, Callable[[Seen], bool]] = {
        "refused": lambda seen: not seen.forwarded and seen.counted in ("reject", "refused"),
        "repaired": lambda seen: seen.passed and seen.changed and (seen.counted, seen.verdict) == ("repair", "pass"),
        "passed, `unchecked`": lambda seen: seen.unchecked,
        "not inspected": lambda seen: seen.unchecked and seen.why_unchecked == "off",
    }
    return phrases[phrase]


def meant(cell: str, settings: Mapping[str, Any], *, stable: bool) -> str:
    """The phrase that a cell comes to under these settings, for an item whose repaired answer is stable or is not."""
    if cell == "as `on_failure` says":
        return "refused" if settings["on_failure"] == "closed" else "passed, `unchecked`"
    if either := re.fullmatch(r"with `repair`, (.+) if stable, else (.+); without, (.+)", cell):
        return either.group((1 if stable else 2) if settings["repair"] else 3)
    if either := re.fullmatch(r"(.+) `(\w+)` or `(\w+)`", cell):
        return f"{either.group(1)} `{either.group(3 if settings['repair'] else 2)}`"
    return cell


async def observed(guarded: Guarded, request: Any) -> Seen:
    async def counts(metric: str) -> dict[str, float]:
        return {action: await guarded.metric(metric, action=action) for action in ACTIONS}

    before, unchecked = await counts("guard_requests_total"), await guarded.metric("guard_unchecked_total")
    off = await guarded.metric("guard_unchecked_total", reason="off")
    guarded.upstream.requests.clear()
    answer = await guarded.client.call("ModelInfer", request)
    deadline = time.monotonic() + PATIENCE_S
    while (after := await counts("guard_requests_total")) == before:
        assert time.monotonic() < deadline, "the request was never counted"
        await asyncio.sleep(0.01)
    (counted,) = [action for action in ACTIONS if after[action] > before[action]]
    why = None
    if await guarded.metric("guard_unchecked_total") > unchecked:
        why = "off" if await guarded.metric("guard_unchecked_total", reason="off") > off else "another"
    sent = guarded.upstream.requests
    changed = bool(sent) and sent != [request.SerializeToString()]
    return Seen(answer.code, answer.trailing.get("guard-verdict"), bool(sent), changed, counted, why)


def uninspectable() -> Any:
    message = infer_request(tiny_bundle.bright(1))
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return message


@pytest.mark.parametrize("settings", SETTINGS, ids=["closed, no repair", "open, repair"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_each_cell_says_what_happens(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, settings: dict[str, Any]
) -> None:
    cells, read, failing = TABLE[mode], Runtime.read, asyncio.Event()

    def faulty(runtime: Runtime, *given: Any, **options: Any) -> Any:
        if failing.is_set():
            raise RuntimeError("a fault of the device")
        return read(runtime, *given, **options)

    monkeypatch.setattr(Runtime, "read", faulty)
    requests = {
        "ModelInfer, judged an attack": infer_request(tiny_bundle.bright(1)),
        "flagged": infer_request(tiny_bundle.flagged(Bundle.open(bundle))),
        "flagged" + UNSTABLE: infer_request(tiny_bundle.flagged(Bundle.open(bundle), stable=False)),
        "not inspectable by its form": uninspectable(),
        "the guard failed to check": infer_request(tiny_bundle.ordinary(1)),
    }

    async def story() -> None:
        async with guarding(bundle, mode=mode, **settings) as guarded:
            for case, request in requests.items():
                column = case.removesuffix(UNSTABLE)
                if column == "the guard failed to check":
                    failing.set()
                phrase = meant(cells[column], settings, stable=case == column)
                seen = await observed(guarded, request)
                assert means(phrase)(seen), f"{mode}, {column}: {cells[column]!r} means {phrase!r}, not {seen}"

    asyncio.run(story())


@pytest.mark.parametrize("mode", get_args(Mode))
def test_other_methods_are_refused_unless_harmless_or_opened(bundle: Path, mode: Mode) -> None:
    assert TABLE[mode]["other methods"] == "refused unless harmless or opened"

    async def story() -> None:
        for opened in (False, True):
            async with guarding(bundle, mode=mode, allow_methods=("ModelConfig",) if opened else ()) as guarded:
                config = await guarded.client.call("ModelConfig", b"request")
                statistics = await guarded.client.call("ModelStatistics", b"request")
                metadata = await guarded.client.call("ModelMetadata", b"")
                await until(lambda: "ModelMetadata" in guarded.upstream.calls)
                assert metadata.ok
                assert (await guarded.client.call("ServerLive", b"")).ok
                assert statistics.code is grpc.StatusCode.UNIMPLEMENTED
                assert config.body == (b"config of request" if opened else b"")
                assert (config.code is grpc.StatusCode.UNIMPLEMENTED) is not opened
                assert ("ModelConfig" in guarded.upstream.calls) is opened

    asyncio.run(story())
