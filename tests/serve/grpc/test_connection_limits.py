"""Connections that grow old, and pings that either end may send: real clients, a model server that counts pings.

gRPC's core sends no more than a ping a second, whatever it is told, and a server overlooks the first two that come too
early: hence calls of some seconds.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from guard.config import ServeConfig
from guard.serve.grpc.connection_limits import MAX_OPTION_MS, ConnectionLimits, milliseconds
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, listening
from tests.serve.guarded import PATIENCE_S, Client, calling, guarding, guarding_at, until
from tests.serve.tap import tapped

ORDINARY = tiny_bundle.ordinary(1)
STRICT_S = 1.2  # between pings, of a server that minds
LONG_CALL_S = 5.0


def test_a_connection_that_is_too_old_is_replaced_and_no_call_is_lost(bundle: Path) -> None:
    async def story() -> None:
        async with (
            guarding(bundle, max_connection_age_s=0.2) as guarded,
            tapped(guarded.serving.address) as (address, tap),
            calling(address) as client,
        ):
            ended, answered = time.monotonic() + PATIENCE_S, 0
            while len(tap.up) < 4:  # connections, one after the other
                assert time.monotonic() < ended
                answers = await asyncio.gather(*(client.infer(ORDINARY) for _ in range(4)))
                assert all(answer.ok for answer in answers)
                answered += len(answers)
            assert len(guarded.upstream.requests) == answered

    asyncio.run(story())


@pytest.mark.parametrize("grace_s", [None, 0.2])
def test_a_call_under_way_outlives_its_connection_as_long_as_the_grace(bundle: Path, grace_s: float | None) -> None:
    async def story() -> None:
        settings = {"max_connection_age_s": 0.1, "max_connection_age_grace_s": grace_s}
        async with guarding(bundle, **settings) as guarded, calling(guarded.serving.address) as client:
            guarded.upstream.hang_infer = True
            call = asyncio.create_task(client.infer(ORDINARY))
            await until(lambda: "ModelInfer" in guarded.upstream.calls)
            await asyncio.wait([call], timeout=1.0)
            assert call.done() is (grace_s is not None)
            guarded.upstream.hang_infer = False
            assert (await call).ok is (grace_s is None)

    asyncio.run(story())


@pytest.mark.parametrize("patient", [True, False])
def test_a_client_may_ask_during_a_long_call_whether_the_guard_is_there(bundle: Path, *, patient: bool) -> None:
    async def story() -> None:
        settings = {"min_ping_interval_s": 0.1 if patient else 5.0}
        pings: list[tuple[str, Any]] = [
            ("grpc.keepalive_time_ms", 200),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with (
            guarding(bundle, **settings) as guarded,
            grpc.aio.insecure_channel(guarded.serving.address, options=pings) as channel,
        ):
            call = asyncio.create_task(Client(channel).infer(ORDINARY))
            guarded.upstream.hang_infer = True
            await asyncio.wait([call], timeout=LONG_CALL_S)
            assert call.done() is not patient  # cut off: the test would notice
            guarded.upstream.hang_infer = False
            answer = await call
            assert answer.ok is patient
            assert patient or "ping" in answer.details.lower()

    asyncio.run(story())


@pytest.mark.parametrize("keepalive_s", [STRICT_S + 0.2, STRICT_S / 8])
def test_a_model_server_that_counts_pings_is_asked_no_more_often_than_is_set(bundle: Path, keepalive_s: float) -> None:
    """The second keepalive is too often, so that the test would notice; the default is what strict servers allow."""
    assert (ServeConfig.upstream_keepalive_s or 0) >= 300

    async def story() -> None:
        fake = FakeUpstream()
        strict = [
            ("grpc.http2.min_ping_interval_without_data_ms", round(STRICT_S * 1000)),
            ("grpc.http2.max_ping_strikes", 1),
        ]
        async with (
            listening(fake, options=strict) as upstream,
            guarding_at(bundle, upstream, fake, upstream_keepalive_s=keepalive_s) as guarded,
        ):
            await guarded.until_ready()
            fake.hang = True  # and so no other answer counts as data
            answer = asyncio.create_task(guarded.client.infer(ORDINARY))
            await asyncio.wait([answer], timeout=LONG_CALL_S)
            fake.hang = False
            assert (await answer).ok is (keepalive_s > STRICT_S)

    asyncio.run(story())


def test_a_time_becomes_whole_milliseconds_that_the_core_takes() -> None:
    assert [milliseconds(s) for s in (1e-9, 0.25, 1e300)] == [1, 250, MAX_OPTION_MS]
    unlimited = dict(ConnectionLimits(1, 1).options())
    assert "grpc.max_connection_age_ms" not in unlimited
    assert "grpc.max_connection_age_grace_ms" not in unlimited
