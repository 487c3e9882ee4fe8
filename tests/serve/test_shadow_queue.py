"""`shadow = "queue"`: what is let pass is inspected afterwards, in bounded memory and in nobody's way."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.errors import ConfigError
from guard.runtime import Runtime
from guard.serve import shadow_queue
from guard.serve.log import Log
from guard.serve.server import running
from tests.serve import tiny_bundle
from tests.serve.guarded import PATIENCE_S, Guarded, config_for, guarding, infer_request
from tests.serve.test_models import guarding_several

ORDINARY, BRIGHT = tiny_bundle.ordinary(2), tiny_bundle.bright(3)
QUEUE: dict[str, Any] = {"mode": "shadow", "shadow": "queue"}


class Device:
    """A device that runs programs while it is free, and keeps the sizes of their batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.sizes, self.fails = threading.Event(), list[int](), False
        self.free.set()
        read = Runtime.read

        def run(runtime: Runtime, images: Any, **options: Any) -> Any:
            assert self.free.wait(PATIENCE_S)
            self.sizes.append(len(images))
            if self.fails:
                raise RuntimeError("CUDA error")
            return read(runtime, images, **options)

        monkeypatch.setattr(Runtime, "read", run)


async def until_counted(guarded: Guarded, count: int, **labels: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while await guarded.metric("guard_shadow_requests_total", **labels) < count:
        assert time.monotonic() < give_up, f"not {count} of {labels}"
        await asyncio.sleep(0.01)


def test_what_passed_gets_its_verdict_afterwards(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, **QUEUE) as guarded:
            for images in (BRIGHT, ORDINARY, tiny_bundle.striped(1)):
                answer = await guarded.client.infer(images)
                assert answer.ok
                assert answer.trailing["guard-verdict"] == "unchecked"
            await until_counted(guarded, 1, model="tiny", action="pass")
            await until_counted(guarded, 2, model="tiny", action="would_reject")
            assert len(guarded.upstream.requests) == 3
            assert await guarded.metric("guard_unchecked_total", model="tiny", reason="shadow_queue") == 3
            assert await guarded.metric("guard_requests_total", model="tiny", action="unchecked") == 3
            assert await guarded.metric("guard_p_value_count", model="tiny") == 6
            first, second = guarded.events("would_reject")
            assert (first["model"], first["items"], first["shadow"]) == ("tiny", 3, "queue")
            assert first["id"] != second["id"]
            assert guarded.events("unchecked") == []

    asyncio.run(story())


def test_its_verdicts_are_those_of_the_inline_shadow(bundle: Path) -> None:
    images = tiny_bundle.clean(40, seed=12)

    async def p_values(**settings: Any) -> tuple[float, float]:
        async with guarding(bundle, mode="shadow", **settings) as guarded:
            await guarded.client.infer(images)
            give_up = time.monotonic() + PATIENCE_S
            while await guarded.metric("guard_p_value_count") < len(images):
                assert time.monotonic() < give_up
                await asyncio.sleep(0.01)
            return await guarded.metric("guard_p_value_sum"), await guarded.metric("guard_p_value_bucket", le="0.1")

    assert asyncio.run(p_values(shadow="queue")) == pytest.approx(asyncio.run(p_values(shadow="inline")))


def test_no_caller_waits_for_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    async def story() -> None:
        async with guarding(bundle, **QUEUE) as guarded:
            device.free.clear()
            began = time.monotonic()
            for _ in range(20):
                assert (await guarded.client.infer(ORDINARY)).ok
            assert time.monotonic() - began < PATIENCE_S / 2
            assert await guarded.metric("guard_shadow_requests_total") == 0
            device.free.set()
            await until_counted(guarded, 20, action="pass")

    asyncio.run(story())


def test_what_finds_no_room_is_dropped_and_counted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: a message of 32 KB each, and a quarter of what messages may take."""
    device = Device(monkeypatch)
    message = infer_request(ORDINARY)
    message.parameters["note"].string_param = "x" * 32_000

    async def story() -> None:
        async with guarding(bundle, **QUEUE, max_message_bytes=2**16, max_bytes_in_flight=2**19) as guarded:
            before = await guarded.metric("guard_bytes_in_flight")
            device.free.clear()
            for _ in range(30):
                assert (await guarded.client.call("ModelInfer", message)).ok
            held = await guarded.metric("guard_bytes_in_flight") - before
            assert 32_000 <= held <= 2**19 / 4
            dropped = await guarded.metric("guard_shadow_requests_total", action="dropped")
            assert dropped == 30 - int(held / len(message.SerializeToString()))
            device.free.set()
            await until_counted(guarded, 30)
            assert await guarded.metric("guard_bytes_in_flight") == before
            assert await guarded.metric("guard_shadow_waiting") == 0

    asyncio.run(story())


def test_the_number_of_those_that_wait_is_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    monkeypatch.setattr(shadow_queue, "MAX_WAITING_MESSAGES", 3)

    async def story() -> None:
        async with guarding(bundle, **QUEUE) as guarded:
            device.free.clear()
            for _ in range(9):
                assert (await guarded.client.infer(ORDINARY)).ok
            assert await guarded.metric("guard_shadow_requests_total", action="dropped") == 5  # one is at work
            device.free.set()

    asyncio.run(story())


def test_what_goes_wrong_reaches_no_caller(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    elsewhere = infer_request(ORDINARY)
    elsewhere.inputs[0].parameters["shared_memory_region"].string_param = "region"

    async def story() -> None:
        async with guarding(bundle, **QUEUE) as guarded:
            assert (await guarded.client.infer(ORDINARY * np.float32(np.nan))).ok
            assert (await guarded.client.call("ModelInfer", elsewhere)).trailing["guard-verdict"] == "unchecked"
            await until_counted(guarded, 1, action="malformed_request")
            await until_counted(guarded, 1, action="uninspectable")
            device.fails = True
            assert (await guarded.client.infer(ORDINARY)).ok
            await until_counted(guarded, 1, action="failed")
            assert "CUDA" in guarded.events("shadow failed")[0]["cause"]
            device.fails = False
            assert (await guarded.client.infer(ORDINARY)).ok
            await until_counted(guarded, 1, action="pass")

    asyncio.run(story())


def test_what_callers_wait_for_goes_first(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Between two requests of a model in enforce there is at most one slice of a shadowed request on the device."""
    text = f"""
    inspect_timeout_s = 20
    [models.strict]
    bundle = "{bundle}"
    [models.shadowed]
    bundle = "{bundle}"
    mode = "shadow"
    shadow = "queue"
    max_rows = 32
    """
    device = Device(monkeypatch)

    async def story() -> None:
        async with guarding_several(tmp_path, text) as guarded:
            for model in guarded.serving.models.table.models:
                model.loaded.engine.item_s = 1.0  # so that a slice is one item
            device.free.clear()
            for _ in range(5):
                assert (await guarded.client.infer(tiny_bundle.ordinary(8), name="shadowed")).ok
            strict = [asyncio.create_task(guarded.client.infer(tiny_bundle.ordinary(7), name="strict")) for _ in "xx"]
            await asyncio.sleep(0.1)
            device.sizes.clear()
            device.free.set()
            assert all(answer.trailing["guard-verdict"] == "pass" for answer in await asyncio.gather(*strict))
            first_strict = [size for size in device.sizes if size in (7, 14)]
            assert len(first_strict) in (1, 2)
            assert device.sizes.index(first_strict[-1]) <= 3  # at most one slice before each
            await until_counted(guarded, 5, model="shadowed", action="pass")
            assert device.sizes.count(1) >= 39  # slices of one item

    asyncio.run(story())


def test_a_share_of_them_is_inspected_where_that_is_wanted(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, **QUEUE, sample=1e-9) as guarded:
            assert (await guarded.client.infer(BRIGHT)).trailing["guard-verdict"] == "unchecked"
            assert await guarded.metric("guard_unchecked_total", reason="not_sampled") == 1
            assert await guarded.metric("guard_unchecked_total", reason="shadow_queue") == 0

    asyncio.run(story())


def test_in_other_modes_the_setting_changes_nothing(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, mode="enforce", shadow="queue") as guarded:
            assert not (await guarded.client.infer(BRIGHT)).ok

    asyncio.run(story())


def test_it_excludes_answers_that_are_held(bundle: Path) -> None:
    async def story() -> None:
        async with running(config_for(bundle, "127.0.0.1:1", **QUEUE, forward="together"), log=Log("error")):
            pytest.fail("it started")

    with pytest.raises(ConfigError, match="shadow = 'queue'"):
        asyncio.run(story())
