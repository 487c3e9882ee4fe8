"""The batcher's laws, without sockets: a made-up device that the test opens and closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.cascade import Readings
from guard.errors import Expired, MalformedRequest, Overloaded, Unchecked
from guard.serve.batcher import Batcher

FAR = 1e9
POISON = -1.0


def images(*values: float) -> NDArray[np.float32]:
    """Items [item, feature] that can be told apart."""
    return np.asarray(values, dtype=np.float32)[:, None]


def read_by_hand(batch: NDArray[Any]) -> Readings:
    value = batch[:, 0].astype(np.float64)
    return Readings(batch, value[:, None], value, value, np.zeros(len(batch), np.int64), value[:, None])


@dataclass
class Device:
    """Reads a batch only while `open`; a batch with a poisoned item fails."""

    batches: list[list[float]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    events: list[tuple[str, Any]] = field(default_factory=list)

    async def read(self, batch: NDArray[Any]) -> Readings:
        self.batches.append(batch[:, 0].tolist())
        await self.open.wait()
        if (batch == POISON).any():
            raise RuntimeError("device says no")
        return read_by_hand(batch)

    def queued(self, rows: int) -> None:
        self.events.append(("queued", rows))

    def batched(self, rows: int) -> None:
        self.events.append(("batched", rows))

    def dropped(self, reason: str) -> None:
        self.events.append(("dropped", reason))

    def engine_failed(self) -> None:
        self.events.append(("failed", None))

    def stage(self, name: str, seconds: float) -> None:
        self.events.append(("stage", name))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    device: Device
    clock: Clock
    batcher: Batcher

    def send(self, *values: float, deadline: float = FAR) -> asyncio.Task[list[float]]:
        async def submit() -> list[float]:
            readings = await self.batcher.submit(images(*values), deadline)
            found: list[float] = readings.p_value.tolist()
            return found

        return asyncio.create_task(submit())

    async def occupy(self) -> asyncio.Task[list[float]]:
        """A first request that the closed device holds, so that what follows waits."""
        first = self.send(0.0)
        await settle()
        assert self.device.batches == [[0.0]]
        return first


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def bench(
    *, rows_per_item: int = 1, max_rows: int = 8, max_queue_rows: int = 32, is_open: bool = False
) -> AsyncIterator[Bench]:
    device, clock = Device(), Clock()
    if is_open:
        device.open.set()
    batcher = Batcher(
        device.read, device, rows_per_item=rows_per_item, max_rows=max_rows, max_queue_rows=max_queue_rows, clock=clock
    )
    async with batcher.running():
        yield Bench(device, clock, batcher)


def scenario(story: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test function that runs a story on an event loop of its own; one that hangs fails."""

    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(10):
                await story()

        asyncio.run(bounded())

    run.__name__, run.__doc__ = story.__name__, story.__doc__
    return run


@scenario
async def test_an_idle_device_takes_a_request_at_once() -> None:
    async with bench(is_open=True) as b:
        assert await b.send(3.0) == [3.0]
        assert b.device.batches == [[3.0]]


@scenario
async def test_what_arrives_while_the_device_is_busy_goes_together_in_order() -> None:
    async with bench() as b:
        first = await b.occupy()
        others = [b.send(float(i), float(i) + 0.5) for i in range(1, 4)]
        await settle()
        b.device.open.set()
        assert await first == [0.0]
        assert [await other for other in others] == [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]
        assert b.device.batches[1:] == [[1.0, 1.5, 2.0, 2.5, 3.0, 3.5]]


@scenario
async def test_a_cancelled_client_is_dropped_before_the_device_and_its_mates_are_answered() -> None:
    async with bench() as b:
        first = await b.occupy()
        doomed, mate = b.send(1.0), b.send(2.0)
        await settle()
        doomed.cancel()
        await settle()
        b.device.open.set()
        assert await first == [0.0]
        assert await mate == [2.0]
        assert b.device.batches[1:] == [[2.0]]
        assert b.device.of("dropped") == ["cancelled"]


@scenario
async def test_a_client_cancelled_on_the_device_leaves_its_batch_mate_alone() -> None:
    async with bench() as b:
        first = await b.occupy()
        doomed, mate = b.send(1.0), b.send(2.0)
        await settle()
        b.device.open.set()
        await first
        b.device.open.clear()
        await settle()
        assert b.device.batches[1:] == [[1.0, 2.0]]
        doomed.cancel()
        await settle()
        b.device.open.set()
        assert await mate == [2.0]


@scenario
async def test_an_expired_request_never_reaches_the_device() -> None:
    async with bench() as b:
        first = await b.occupy()
        late, mate = b.send(1.0, deadline=b.clock.now + 5), b.send(2.0)
        await settle()
        b.clock.now += 6
        b.device.open.set()
        await first
        with pytest.raises(Expired):
            await late
        assert await mate == [2.0]
        assert b.device.batches[1:] == [[2.0]]
        assert b.device.of("dropped") == ["expired"]


@scenario
async def test_a_deadline_is_kept_although_the_device_hangs() -> None:
    async with bench() as b:
        stuck = b.send(1.0, deadline=b.clock.now + 0.02)
        with pytest.raises(Expired):
            await stuck


@scenario
async def test_an_engine_error_fails_only_the_request_that_causes_it() -> None:
    async with bench() as b:
        first = await b.occupy()
        before, poisoned, after = b.send(1.0), b.send(2.0, POISON), b.send(3.0)
        await settle()
        b.device.open.set()
        await first
        assert await before == [1.0]
        assert await after == [3.0]
        with pytest.raises(Unchecked) as caught:
            await poisoned
        assert "device says no" in repr(caught.value.__cause__)
        assert "device says no" not in str(caught.value)
        assert await b.send(4.0) == [4.0]


@scenario
async def test_a_request_larger_than_a_batch_goes_in_pieces_and_comes_back_whole() -> None:
    async with bench(is_open=True, max_rows=4) as b:
        values = [float(i) for i in range(11)]
        assert await b.send(*values) == values
        assert [len(batch) for batch in b.device.batches] == [4, 4, 3]


@scenario
async def test_a_large_request_that_fails_in_one_piece_fails_whole_and_stops_there() -> None:
    async with bench(is_open=True, max_rows=2) as b:
        with pytest.raises(Unchecked):
            await b.send(1.0, POISON, 3.0, 4.0, 5.0, 6.0)
        await settle()
        assert b.device.batches == [[1.0, POISON]]
        assert b.device.of("dropped") == []


@scenario
async def test_limits_count_rows_and_not_requests() -> None:
    async with bench(rows_per_item=3, max_rows=8) as b:
        first = await b.occupy()
        others = [b.send(float(i)) for i in range(1, 6)]
        await settle()
        b.device.open.set()
        await asyncio.gather(first, *others)
        assert b.device.of("batched") == [3, 6, 6, 3]


@scenario
async def test_a_full_queue_sheds_at_the_door_and_those_inside_are_served() -> None:
    async with bench(max_queue_rows=3) as b:
        first = await b.occupy()
        inside = b.send(1.0, 2.0, 3.0)
        await settle()
        with pytest.raises(Overloaded):
            await b.send(4.0)
        b.device.open.set()
        assert await first == [0.0]
        assert await inside == [1.0, 2.0, 3.0]


@scenario
async def test_the_dead_make_room_for_the_living() -> None:
    async with bench(max_queue_rows=3) as b:
        first = await b.occupy()
        dead = b.send(1.0, 2.0, 3.0)
        await settle()
        dead.cancel()
        await settle()
        living = b.send(4.0)
        await settle()
        b.device.open.set()
        await first
        assert await living == [4.0]


@scenario
async def test_a_request_that_can_never_fit_is_refused_for_good() -> None:
    async with bench(max_queue_rows=3) as b:
        with pytest.raises(MalformedRequest, match="holds 3"):
            await b.send(1.0, 2.0, 3.0, 4.0)


@scenario
async def test_leaving_tells_everybody_who_waits() -> None:
    async with bench() as b:
        on_device = await b.occupy()
        waiting = b.send(1.0)
        await settle()
    for task in (on_device, waiting):
        with pytest.raises(Unchecked, match="shutting down"):
            await task
    with pytest.raises(Unchecked):
        await b.send(2.0)


@scenario
async def test_what_the_queue_holds_is_told() -> None:
    async with bench(rows_per_item=2) as b:
        first = await b.occupy()
        other = b.send(1.0, 2.0)
        await settle()
        assert b.device.of("queued")[-1] == 4
        assert b.batcher.busy_s() == 0.0
        b.clock.now += 3
        assert b.batcher.busy_s() == 3.0
        b.device.open.set()
        await asyncio.gather(first, other)
        await settle()
        assert b.device.of("queued")[-1] == 0
        assert b.batcher.busy_s() == 0.0
