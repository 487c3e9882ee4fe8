"""Query memory while serving: what it tells, whom it refuses, and that nobody else notices."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from guard.audit_log import is_audit_log, read_lines
from guard.config import ServeConfig
from guard.errors import ConfigError, Unchecked
from guard.manifest import InputSpec
from guard.model_config import ModelConfig
from guard.queries.memory import QueryMemory
from guard.queries.recent import RecentQueries
from guard.serve.check_settings import check_complete
from guard.serve.inspector import Inspector
from guard.serve.log import Log
from guard.serve.query_metrics import QueryMetrics
from guard.serve.query_watch import QueryWatch, check_watchable
from guard.traffic_sample import TrafficSample
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding, until

LABEL = tiny_bundle.MODEL_NAME
TOKENS = {"camera": "a-token-of-some-length", "jobs": "another-token-of-some-length"}


def as_client(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {TOKENS[name]}"),)


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    file = tmp_path / "tokens"
    file.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()), "utf-8")
    file.chmod(0o600)
    return str(file)


def search(count: int) -> NDArray[np.float32]:
    """Ordinary items of which each moves one value of the first [item, ...]."""
    items = np.repeat(tiny_bundle.ordinary(1), count, axis=0)
    for number, item in enumerate(items):
        item.flat[number % item.size] += np.float32(0.02 + 0.001 * number)
    return items


def test_a_search_is_told_and_no_verdict_changes(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, query_memory="watch") as guarded:
            answers = [await guarded.client.infer(item[None]) for item in search(40)]
            assert all(answer.ok for answer in answers)
            assert {answer.trailing["guard-verdict"] for answer in answers} == {"pass"}
            assert await guarded.metric("guard_query_attacks_total", model=LABEL, scope="principal") > 20
            assert await guarded.metric("guard_query_memory_bytes", model=LABEL) > 0
            line = guarded.events("query_attack")[0]
            assert line["query_score"] > 12
            assert line["rejects"] is False

    asyncio.run(story())


def test_a_searching_principal_is_refused_and_no_other(bundle: Path, tokens: str) -> None:
    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": "reject"}
        async with guarding(bundle, **settings) as guarded:
            items = search(40)
            answers = [await guarded.client.infer(item[None], metadata=as_client("jobs")) for item in items]
            assert all(answer.ok for answer in answers[:10])
            assert not any(answer.ok for answer in answers[20:])
            last = answers[-1]
            assert last.code is grpc.StatusCode.PERMISSION_DENIED
            assert last.trailing["guard-verdict"] == "reject"
            assert "query" not in last.details  # what an attacker hears is what every rejected client hears
            line = guarded.events("reject")[-1]
            assert (line["reason"], line["principal"]) == ("query_attack", "jobs")
            forwarded = len(guarded.upstream.requests)
            assert forwarded == sum(answer.ok for answer in answers)
            assert (await guarded.client.infer(items[:1], metadata=as_client("camera"))).ok
            unrelated = await guarded.client.infer(tiny_bundle.clean(1, seed=5), metadata=as_client("jobs"))
            assert unrelated.ok

    asyncio.run(story())


def test_the_audit_says_why(bundle: Path, tokens: str, tmp_path: Path) -> None:
    """Each query of an attack leaves a line with its reason: under "watch" those that pass, under "reject" all."""

    async def lines(mode: str) -> list[dict[str, Any]]:
        folder = tmp_path / mode
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": mode, "audit_dir": str(folder)}
        async with guarding(bundle, **settings) as guarded:
            for item in search(30):
                await guarded.client.infer(item[None], metadata=as_client("jobs"))
            attacks = await guarded.metric("guard_query_attacks_total", model=LABEL)
            assert attacks > 10
            await until(lambda: len(list(read_lines(folder)) if is_audit_log(folder) else []) >= attacks)
        found = list(read_lines(folder))
        assert len(found) == attacks
        return found

    async def story() -> None:
        for mode, action in (("watch", "pass"), ("reject", "reject")):
            found = await lines(mode)
            assert {(one["action"], one["reason"], one["principal"]) for one in found} == {
                (action, "query_attack", "jobs")
            }
            assert {tuple(one["atlas"]) for one in found} == {("AML.T0040", "AML.T0043.001")}
            assert all(one["query_score"] > 12 and one["query_scope"] == "principal" for one in found)

    asyncio.run(story())


def test_whom_queries_give_away_is_refused_where_the_inspection_fails(
    bundle: Path, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under on_failure = "open" others pass unchecked, and the attacker of whom queries tell does not."""

    async def broken(*_: object) -> None:
        raise Unchecked("the engine failed")

    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": "reject"}
        settings |= {"on_failure": "open", "audit_dir": str(tmp_path / "log")}
        items = search(40)
        async with guarding(bundle, **settings) as guarded:
            for item in items[:30]:
                await guarded.client.infer(item[None], metadata=as_client("jobs"))
            monkeypatch.setattr(Inspector, "inspect", broken)
            forwarded = len(guarded.upstream.requests)
            answers = [await guarded.client.infer(item[None], metadata=as_client("jobs")) for item in items[30:]]
            assert {answer.code for answer in answers} == {grpc.StatusCode.PERMISSION_DENIED}
            assert "query" not in answers[0].details
            assert len(guarded.upstream.requests) == forwarded
            other = await guarded.client.infer(items[:1], metadata=as_client("camera"))
            assert (other.ok, other.trailing["guard-verdict"]) == (True, "unchecked")
            line = guarded.events("reject")[-1]
            assert (line["reason"], line["unchecked"], line["principal"]) == ("query_attack", "unchecked", "jobs")
        found = [line for line in read_lines(tmp_path / "log") if "p_value" not in line]
        assert [line["action"] for line in found] == ["reject"] * 10 + ["unchecked"]
        assert {line["reason"] for line in found[:10]} == {"query_attack"}
        assert all(line["query_score"] > 12 and "AML.T0040" in line["atlas"] for line in found[:10])
        assert "query_score" not in found[10]

    asyncio.run(story())


@pytest.mark.parametrize(("mode", "on_failure"), [("watch", "open"), ("reject", "closed")])
def test_what_is_unchecked_tells_of_its_queries(
    bundle: Path, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, on_failure: str
) -> None:
    async def broken(*_: object) -> None:
        raise Unchecked("the engine failed")

    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": mode}
        settings |= {"on_failure": on_failure, "audit_dir": str(tmp_path / "log")}
        async with guarding(bundle, **settings) as guarded:
            monkeypatch.setattr(Inspector, "inspect", broken)
            for item in search(30):
                await guarded.client.infer(item[None], metadata=as_client("jobs"))
        found = list(read_lines(tmp_path / "log"))
        assert {line["reason"] for line in found} == {"unchecked"}
        assert {line["action"] for line in found} == {"unchecked" if on_failure == "open" else "refused"}
        assert "query_scope" not in found[0]
        if on_failure == "open":  # refusals are told of seldom
            assert (found[-1]["query_scope"], found[-1]["atlas"][0]) == ("principal", "AML.T0040")

    asyncio.run(story())


@pytest.mark.parametrize("mode", ["watch", "reject"])
def test_a_memory_that_hangs_holds_no_request(
    bundle: Path, tokens: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    free = threading.Event()

    def hung(*_: object) -> None:
        free.wait(30)

    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": mode}
        async with guarding(bundle, **settings, inspect_timeout_s=1.0) as guarded:
            monkeypatch.setattr(QueryMemory, "see", hung)
            answer = await guarded.client.infer(tiny_bundle.ordinary(), metadata=as_client("jobs"))
            free.set()
            assert answer.ok == (mode == "watch")
            assert answer.ok or "inspect_timeout_s" in answer.details

    asyncio.run(story())


def test_items_that_queries_refuse_are_marked_in_the_sample(bundle: Path, tokens: str, tmp_path: Path) -> None:
    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": "reject"}
        async with guarding(bundle, **settings, audit_dir=str(tmp_path), sample_share=1.0) as guarded:
            refused = [
                not (await guarded.client.infer(item[None], metadata=as_client("jobs"))).ok for item in search(40)
            ]
        (store,) = (tmp_path / "sample").iterdir()
        shards = list(TrafficSample.open(store).shards())
        assert np.concatenate([shard.rejected for shard in shards]).tolist() == refused
        assert 10 < sum(refused) < 40

    asyncio.run(story())


def test_what_the_memory_does_not_see_is_told_at_the_start(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, query_memory="watch", mode="shadow", shadow="queue") as guarded:
            (line,) = guarded.events("queries unseen")
            assert "has no effect" in line["warning"]

    asyncio.run(story())


def test_under_shadow_it_would_be_rejected(bundle: Path, tokens: str) -> None:
    async def story() -> None:
        settings = {"principal_from": "bearer", "client_tokens": tokens, "query_memory": "reject", "mode": "shadow"}
        async with guarding(bundle, **settings) as guarded:
            answers = [await guarded.client.infer(item[None], metadata=as_client("jobs")) for item in search(30)]
            assert all(answer.ok for answer in answers)
            assert guarded.events("would_reject")[-1]["reason"] == "query_attack"

    asyncio.run(story())


@pytest.mark.parametrize(("owner", "name"), [(QueryMemory, "see"), (QueryWatch, "tell")])
def test_a_fault_ends_the_watch_and_nothing_else(
    owner: type, name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    async def story() -> None:
        monkeypatch.setattr(owner, name, broken)
        async with guarding(bundle, query_memory="watch") as guarded:
            for _ in range(3):
                assert (await guarded.client.infer(tiny_bundle.ordinary())).ok
            assert len(guarded.events("queries are no longer watched")) == 1

    asyncio.run(story())


def test_rejecting_needs_a_source_of_principals() -> None:
    with pytest.raises(ConfigError, match='query_memory = "reject" needs principal_from'):
        check_complete(ServeConfig(bundle="b", upstream="u:1", query_memory="reject"))


def test_rows_of_a_table_are_not_watched() -> None:
    spec = InputSpec("input", "FP32", (5,), (0.0,), (1.0,), None)
    with pytest.raises(ConfigError, match="needs images or series"):
        check_watchable(ModelConfig("b", query_memory="watch"), spec)
    check_watchable(ModelConfig("b"), spec)


def test_many_at_once_among_thousands_of_principals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the thread reads the memory, and what a request costs does not grow with those that are known."""
    metrics = QueryMetrics(CollectorRegistry())
    spec = InputSpec("input", "FP32", (3, 32, 32), (0.0,), (1.0,), None)
    config = ModelConfig("b", query_memory="watch")
    watch = QueryWatch(spec, config=config, label="m", metrics=metrics, log=Log("info", io.StringIO()))
    for number in range(5000):
        watch.memory.ring(f"p{number}", time.monotonic())
    images = np.random.default_rng(0).random((16, 1, 3, 32, 32)).astype(np.float32)
    monkeypatch.setattr(RecentQueries, "size_bytes", property(lambda _: pytest.fail("every ring was asked")))
    watch.memory.together.__class__ = type("Together", (RecentQueries,), {"size_bytes": 7})

    async def story() -> None:
        asked = [watch.see(images[number % 16], f"new {number}", {}) for number in range(50)]
        found = await asyncio.gather(*asked)
        assert all(one is not None for one in found)

    asyncio.run(story())
    assert not watch.over
    assert watch.memory.size_bytes == 7 + 5050 * watch.memory.ring_bytes
    assert metrics.size_bytes.labels("m")._value.get() == watch.memory.size_bytes
