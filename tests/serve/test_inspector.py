"""The middle of the guard, asked by a Python caller: no protocol, no listener, no client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.bundle import Bundle
from guard.errors import (
    Expired,
    InspectionTimeout,
    MalformedRequest,
    Overloaded,
    Unchecked,
    Uninspectable,
    UnknownModel,
)
from guard.policy import Action, Policy
from guard.runtime import Runtime
from guard.serve.batcher import Batcher
from guard.serve.breaker import Breaker
from guard.serve.engine import Engine
from guard.serve.inspector import Inspector
from tests.layering import House, imports
from tests.serve import tiny_bundle

POLICY = Policy(mode="enforce", on_failure="closed", rows="any", reject_rate=0.05, flag_rate=0.1, repair=None)


class Quiet:
    """An observer that looks away."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(tiny_bundle.make(tmp_path_factory.mktemp("inspector") / "bundle").path)


@pytest.fixture
def inspector(bundle: Bundle) -> Iterator[Inspector]:
    engine = Engine(bundle, device="cpu", threads=1, stage=lambda *_: None)
    batcher = Batcher(engine.read, Quiet(), rows_per_item=2, max_rows=64, max_queue_rows=1024)
    breaker = Breaker(most_in_a_row=5, most_share=0.5)
    yield Inspector(policy=POLICY, calibration=bundle.calibration, batcher=batcher, engine=engine, breaker=breaker)
    engine.close()


def run(inspector: Inspector, work: Any) -> Any:
    async def story() -> Any:
        await inspector.engine.load(largest=8)
        async with inspector.batcher.running():
            return await work()

    return asyncio.run(story())


def soon() -> float:
    return time.monotonic() + 30.0


def test_a_caller_hands_over_images_and_gets_readings_and_a_verdict(bundle: Bundle, inspector: Inspector) -> None:
    images = np.concatenate([tiny_bundle.ordinary(2), tiny_bundle.bright(1)])
    found = run(inspector, lambda: inspector.inspect(images, soon(), soon()))
    expected = Runtime.open(bundle, threads=1).read(images)
    np.testing.assert_array_equal(found.readings.p_value, expected.p_value)
    assert found.verdict.items == (Action.PASS, Action.PASS, Action.REJECT)
    assert (found.verdict.request, found.enacted, found.worst) == (Action.REJECT, Action.REJECT, 2)
    assert inspector.item_labels(found.verdict) == ("pass", "pass", "reject")


def test_in_shadow_the_verdict_is_the_same_and_nothing_is_enacted(inspector: Inspector) -> None:
    shadow = replace(inspector, policy=replace(POLICY, mode="shadow"))
    found = run(shadow, lambda: shadow.inspect(tiny_bundle.bright(1), soon(), soon()))
    assert (found.verdict.request, found.enacted) == (Action.REJECT, Action.PASS)
    assert shadow.item_labels(found.verdict) == ("would_reject",)


@pytest.mark.parametrize("rows", ["any", "request"])
def test_an_item_is_repaired_where_that_is_stable_and_rejected_where_not(
    bundle: Bundle, inspector: Inspector, rows: Any
) -> None:
    rates = {"reject_rate": tiny_bundle.REJECT_RATE, "flag_rate": tiny_bundle.FLAG_RATE}
    repairing = replace(inspector, policy=replace(POLICY, repair="steps", rows=rows, **rates))
    cleaned = Runtime.open(bundle, threads=1).repair
    for stable in (True, False):
        images = tiny_bundle.flagged(bundle, stable=stable)

        async def story(images: Any = images) -> Any:
            found = await repairing.inspect(images, soon(), soon())
            return found, await repairing.repair(images, found, soon(), soon())

        found, (forward, tried) = run(repairing, story)
        assert found.verdict.request is Action.REPAIR
        np.testing.assert_array_equal(forward, cleaned(images, "steps").images)
        wanted = Action.REPAIR if stable else Action.REJECT
        assert (tried.verdict.items, tried.verdict.request, tried.enacted) == ((wanted,), wanted, wanted)


def test_a_large_request_is_repaired_in_parts_that_fit(bundle: Bundle, inspector: Inspector) -> None:
    images = np.concatenate([tiny_bundle.ordinary(10), tiny_bundle.flagged(bundle), tiny_bundle.ordinary(10)])
    sizes: list[int] = []

    async def story() -> Any:
        runtime = inspector.engine.loaded()
        whole = runtime.repair(images, "steps")
        session, real = runtime.repairs["steps"], runtime.repairs["steps"].run

        def noted(outputs: Any, part: Any) -> Any:
            sizes.append(len(part))
            return real(outputs, part)

        session.run = noted  # type: ignore[method-assign]
        return whole, await inspector.engine.repair(images, "steps")

    whole, found = run(inspector, story)
    assert sizes == [8, 8, 5]
    np.testing.assert_array_equal(found.images, whole.images)
    np.testing.assert_array_equal(found.classes, whole.classes)


def test_what_cannot_be_judged_as_a_whole_is_refused(inspector: Inspector) -> None:
    whole = replace(inspector, policy=replace(POLICY, rows="request"))
    with pytest.raises(Uninspectable, match="cannot be judged as a whole"):
        run(whole, lambda: whole.inspect(tiny_bundle.ordinary(200), soon(), soon()))
    found = run(whole, lambda: whole.inspect(tiny_bundle.bright(1), soon(), soon()))
    assert found.request_p_value is not None
    assert found.request_p_value <= POLICY.reject_rate


@pytest.mark.parametrize(
    ("mode", "on_failure", "excused"),
    [
        ("enforce", "closed", {}),
        ("enforce", "open", {"unchecked", "inspection_timeout", "overloaded", "internal"}),
        (
            "shadow",
            "closed",
            {"unchecked", "inspection_timeout", "overloaded", "internal", "malformed_request", "uninspectable"},
        ),
        (
            "shadow",
            "open",
            {"unchecked", "inspection_timeout", "overloaded", "internal", "malformed_request", "uninspectable"},
        ),
    ],
)
def test_mode_and_on_failure_say_what_passes_unchecked(
    inspector: Inspector, mode: Any, on_failure: Any, excused: set[str]
) -> None:
    asked = replace(inspector, policy=replace(POLICY, mode=mode, on_failure=on_failure))
    errors = {
        "unchecked": Unchecked(""),
        "inspection_timeout": InspectionTimeout(""),
        "overloaded": Overloaded(""),
        "internal": RuntimeError(""),
        "malformed_request": MalformedRequest(""),
        "uninspectable": Uninspectable(""),
        "unknown_model": UnknownModel(""),
        "expired": Expired(""),
    }
    found = {name: asked.unchecked(error) for name, error in errors.items()}
    assert found == {name: name if name in excused else None for name in errors}


def test_it_knows_no_protocol() -> None:
    house, ahead, seen = House.read(Path(__file__).parents[2]), ["guard.serve.inspector"], set[str]()
    while ahead:
        module = ahead.pop()
        seen.add(module)
        ahead += house.arrows[module] - seen
    for module in seen:
        named = {one.top for one in imports(house.sources[house.files[module]])}
        assert not named & {"grpc", "google"}, module
        assert not module.startswith("guard.serve.grpc.wire")
