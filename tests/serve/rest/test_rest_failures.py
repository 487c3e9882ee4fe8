"""What gRPC's clients meet where the guard is broken, samples, shadows later or asks at once, met over REST as well."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from guard.runtime import Runtime
from tests.serve.guarded import PATIENCE_S, until
from tests.serve.rest.rest_guarded import BRIGHT, ORDINARY, rest_guarding


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_an_open_breaker_is_503_or_lets_pass(bundle: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error")

    async def story() -> None:
        async with rest_guarding(bundle, on_failure=on_failure, breaker_failures=2) as guarded:
            monkeypatch.setattr(Runtime, "read", lost)
            monkeypatch.setattr(Runtime, "self_check", lost)
            give_up = time.monotonic() + PATIENCE_S
            while not guarded.events("breaker open"):
                assert time.monotonic() < give_up
                await guarded.infer(ORDINARY)
                await asyncio.sleep(0.02)
            answer = await guarded.infer(ORDINARY)
            if on_failure == "closed":
                assert answer.status_code == 503
                assert answer.headers["x-envoy-ratelimited"] == "true"  # or Istio would send it twice more
                assert await guarded.metric("guard_refused_total", reason="breaker_open") >= 1
            else:
                assert (answer.status_code, answer.headers["guard-verdict"]) == (200, "unchecked")

    asyncio.run(story())


def test_what_is_not_sampled_passes_and_is_marked(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, sample=1e-9) as guarded:
            answer = await guarded.infer(BRIGHT)
            assert (answer.status_code, answer.headers["guard-verdict"]) == (200, "unchecked")
            assert await guarded.metric("guard_unchecked_total", reason="not_sampled") == 1
            assert (await guarded.infer(ORDINARY[:, :, :2])).status_code == 400

    asyncio.run(story())


def test_what_is_shadowed_later_gets_its_verdict(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, mode="shadow", shadow="queue") as guarded:
            answer = await guarded.infer(BRIGHT)
            assert (answer.status_code, answer.headers["guard-verdict"]) == (200, "unchecked")
            await until(lambda: bool(guarded.events("would_reject")))
            assert guarded.events("would_reject")[0]["id"] == answer.headers["guard-id"]

    asyncio.run(story())


def test_an_answer_that_came_early_is_held_until_the_verdict(bundle: Path) -> None:
    async def story() -> None:
        async with rest_guarding(bundle, forward="together") as guarded:
            assert (await guarded.infer(ORDINARY)).status_code == 200
            rejected = await guarded.infer(BRIGHT)
            assert rejected.status_code == 403
            assert "not forwarded" not in rejected.text
            assert await guarded.metric("guard_held_answers_total", fate="delivered") == 1
            assert await guarded.metric("guard_held_answers_total", fate="discarded") == 1
            sequence = await guarded.infer(np.asarray(BRIGHT), parameters={"sequence_id": 7})
            assert sequence.status_code == 403
            assert await guarded.metric("guard_held_answers_total", fate="discarded") == 1

    asyncio.run(story())
