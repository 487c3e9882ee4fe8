"""Memory for messages: never more than the limit, in order, and whoever does not get on makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from guard.errors import Overloaded
from guard.serve.permits import MAX_WAITING_CALLS, Permits

LIMIT, LARGEST = 100, 40


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await story()

    asyncio.run(limited())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_a_message_does_not_need_is_given_back() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LARGEST)
        async with AsyncExitStack() as stack:
            held = [await stack.enter_async_context(permits.permit(wait_s=0)) for _ in range(2)]
            assert permits.taken_bytes == 2 * LARGEST
            with pytest.raises(Overloaded):
                await stack.enter_async_context(permits.permit(wait_s=0))
            held[0].shrink(5)
            held[0].shrink(30)  # it does not grow again
            assert permits.taken_bytes == LARGEST + 5
            await stack.enter_async_context(permits.permit(wait_s=0))
            assert permits.taken_bytes == 2 * LARGEST + 5
        assert permits.taken_bytes == 0

    run(story)


def test_what_is_here_is_held_and_grows_as_far_as_there_is_room() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LARGEST)
        async with permits.holding(LARGEST) as permit:
            permit.shrink(5)
            assert permits.taken_bytes == 5
            async with permit.with_more(3):
                assert permits.taken_bytes == 5
            async with permit.with_more(LARGEST):
                assert permits.taken_bytes == LARGEST
            async with permit.with_more(2 * LIMIT):
                assert permits.taken_bytes == LIMIT
            with pytest.raises(Overloaded):
                async with permits.holding(LIMIT):
                    raise AssertionError("there was no room")
            assert permits.taken_bytes == 5
        async with permits.holding(2 * LIMIT):
            assert permits.taken_bytes == LIMIT
        assert permits.taken_bytes == 0

    run(story)


def test_permits_are_granted_in_order_and_only_while_there_is_room() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LARGEST)
        order: list[int] = []
        most = 0

        async def call(number: int) -> None:
            nonlocal most
            async with permits.permit(wait_s=5):
                order.append(number)
                most = max(most, permits.taken_bytes)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(call(number) for number in range(40)))
        assert order == list(range(40))
        assert most <= LIMIT
        assert permits.taken_bytes == 0
        assert not permits.waiting

    run(story)


def test_whoever_leaves_the_line_leaves_it_in_order() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LIMIT)
        async with permits.permit(wait_s=0):
            entered: list[str] = []

            async def call(name: str) -> None:
                async with permits.permit(wait_s=5):
                    entered.append(name)

            calls = {name: asyncio.create_task(call(name)) for name in "abc"}
            await settle()
            calls["a"].cancel()
            await settle()
            assert len(permits.waiting) == 2
        await asyncio.gather(*calls.values(), return_exceptions=True)
        assert entered == ["b", "c"]
        assert permits.taken_bytes == 0

    run(story)


def test_whoever_leaves_in_the_moment_in_which_others_are_granted_theirs_just_leaves() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LIMIT)

        async def call() -> None:
            async with permits.permit(wait_s=5):
                pass

        async with permits.permit(wait_s=0):
            leaving, staying = asyncio.create_task(call()), asyncio.create_task(call())
            await settle()
            leaving.cancel()  # its place is empty, and it has not heard of it when the room is given back
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert permits.taken_bytes == 0

    run(story)


def test_nobody_waits_long_and_not_all_may() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LIMIT)

        async def call() -> None:
            async with permits.permit(wait_s=0.05):
                raise AssertionError("there was no room")

        async with permits.permit(wait_s=0):
            ended = await asyncio.gather(*(call() for _ in range(MAX_WAITING_CALLS + 7)), return_exceptions=True)
        assert {type(error) for error in ended} == {Overloaded}
        assert permits.taken_bytes == 0
        assert not permits.waiting

    run(story)


def test_a_message_that_does_not_end_makes_room_when_others_wait() -> None:
    async def story() -> None:
        permits = Permits(LIMIT, largest_bytes=LIMIT, patience_s=0.02)

        async def slow() -> bool:
            async with permits.permit(wait_s=0) as permit:
                try:
                    async with permit.read_within(60):
                        await asyncio.Event().wait()
                except TimeoutError:
                    return permit.given_up
            return False

        first = asyncio.create_task(slow())
        await settle()
        async with permits.permit(wait_s=1):
            assert await first
        second = asyncio.create_task(slow())
        await asyncio.sleep(0.04)
        assert not second.done()  # nobody waits: it may take its time
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert permits.taken_bytes == 0
        assert not permits.reading

    run(story)
