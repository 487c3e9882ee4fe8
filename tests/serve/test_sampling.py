"""Sampling: a share of the requests is inspected, nobody can tell which, and the operator can tell afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from guard.serve.sampling import Sampling, sample_key
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding

NAMES = [f"{number:016x}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_the_share_that_is_inspected_is_the_one_asked_for(share: float) -> None:
    sampling = Sampling(share, sample_key("secret"))
    found = np.mean([sampling.takes(name) for name in NAMES])
    assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(NAMES))


def test_draws_are_spread_evenly_and_below_one() -> None:
    draws = np.asarray([Sampling(0.5, sample_key("secret")).draw(name) for name in NAMES])
    assert 0 <= draws.min() < draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert (np.abs(counts - len(NAMES) / 20) < 5 * np.sqrt(len(NAMES) / 20)).all()


def test_another_key_chooses_others() -> None:
    """Who does not have the key is right about half of the requests, as by a coin."""
    one, other = (Sampling(0.5, sample_key(secret)) for secret in ("one", "other"))
    agreed = np.mean([one.takes(name) == other.takes(name) for name in NAMES])
    assert abs(agreed - 0.5) < 0.02
    assert sample_key(None) != sample_key(None)


def test_a_whole_share_inspects_all_and_logs_nothing() -> None:
    assert all(Sampling().takes(name) for name in NAMES)
    assert Sampling().fields(NAMES[0]) == {}


def test_what_is_not_sampled_passes_marked_counted_and_to_be_computed_again(bundle: Path) -> None:
    """The same bytes are sent each time, and each time they draw anew."""
    images = tiny_bundle.bright(1)

    async def story() -> None:
        async with guarding(bundle, sample=0.5, sample_key="secret") as guarded:
            answers = [await guarded.client.infer(images) for _ in range(60)]
            passed = [answer for answer in answers if answer.ok]
            assert {answer.trailing["guard-verdict"] for answer in passed} == {"unchecked"}
            assert {answer.code for answer in answers} == {grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED}
            count = len(passed)
            assert 12 < count < 48
            assert await guarded.metric("guard_unchecked_total", model="tiny", reason="not_sampled") == count
            assert await guarded.metric("guard_requests_total", model="tiny", action="unchecked") == count
            assert await guarded.metric("guard_items_total", model="tiny", action="unchecked") == count
            assert await guarded.metric("guard_requests_total", model="tiny", action="reject") == 60 - count
            assert len(guarded.upstream.requests) == count
            sampling = Sampling(0.5, sample_key("secret"))
            for answer in answers:
                assert sampling.takes(str(answer.trailing["guard-id"])) is not answer.ok
            lines = [*guarded.events("unchecked"), *guarded.events("reject")]
            assert len(lines) == 60
            for line in lines:
                assert (line["draw"], line["sample"]) == (sampling.draw(line["id"]), 0.5)
            assert {line["level"] for line in guarded.events("unchecked")} == {"debug"}

    asyncio.run(story())


def test_what_is_wrong_with_a_request_is_refused_whether_it_is_sampled_or_not(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, sample=1e-9) as guarded:
            for images in (tiny_bundle.ordinary(1) * np.nan, np.zeros((1, 3), np.float32)):
                answer = await guarded.client.infer(images)
                assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
            assert (await guarded.client.infer(tiny_bundle.bright(1))).ok

    asyncio.run(story())
