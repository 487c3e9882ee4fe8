"""Histograms that are filled by hand agree with the library's, labels stay bounded, and standard names are there."""

from __future__ import annotations

import asyncio
import os
import platform
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from guard.errors import UserError, leaves
from guard.serve.build import MISSING, RUNTIMES, build_labels, version_of
from guard.serve.grpc.call import Call
from guard.serve.metrics import BUCKET_P_VALUES, Metrics, PValues
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import guarding


def test_p_values_are_binned_as_the_library_bins_them() -> None:
    registry = CollectorRegistry()
    theirs = Histogram("theirs", "x", ["detector"], registry=registry, buckets=BUCKET_P_VALUES)
    ours = PValues("ours", "x", ["detector"])
    for name in "ab":
        ours.begin(name)
    registry.register(ours)
    generator = np.random.default_rng(0)
    for size in (1, 7, 200):
        values = generator.uniform(0, 1, (size, 2))
        values[0] = [0.001, 1.0]  # on the edges
        values[generator.uniform(size=values.shape) < 0.2] = np.nan
        ours.observe(values, [("a",), ("b",)])
        for column, name in enumerate("ab"):
            for value in values[:, column]:
                if not np.isnan(value):
                    theirs.labels(name).observe(value)
    found: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], float]] = {"ours": {}, "theirs": {}}
    for family in registry.collect():
        for sample in family.samples:
            suffix = sample.name.removeprefix(family.name)
            if suffix != "_created":
                found[family.name][suffix, frozenset(sample.labels.items())] = sample.value
    assert found["ours"].keys() == found["theirs"].keys()
    assert len(found["ours"]) == 2 * (len(BUCKET_P_VALUES) + 3)
    for key, value in found["ours"].items():
        assert value == pytest.approx(found["theirs"][key])


def test_unknown_models_and_methods_share_one_label() -> None:
    metrics = Metrics(CollectorRegistry(), methods=["ServerLive"])
    metrics.models = frozenset({"m", "n"})
    assert [metrics.model(name) for name in ("m", "n", "x", "")] == ["m", "n", "other", "other"]
    assert [metrics.method(name) for name in ("ServerLive", "Made.Up")] == ["ServerLive", "other"]


def test_disagreement_counts_items() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, methods=[])
    assert metrics.predictions("m", np.asarray([1, 2, 3]), np.asarray([1, 0, 0])) == 2
    assert registry.get_sample_value("guard_upstream_compared_items_total", {"model": "m"}) == 3
    assert registry.get_sample_value("guard_upstream_disagreement_items_total", {"model": "m"}) == 2


def test_calls_are_counted_by_the_status_that_clients_get(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, FakeUpstream(), allow_methods=("ModelConfig",)) as guarded:
            seen: dict[tuple[str, str], int] = {}

            async def ends(method: str, *given: Any, **options: Any) -> None:
                call = guarded.client.infer if method == "ModelInfer" else guarded.client.call
                answer = await call(*((method, *given) if method != "ModelInfer" else given), **options)
                seen[method, answer.code.name] = seen.get((method, answer.code.name), 0) + 1

            for images in (tiny_bundle.ordinary(1), tiny_bundle.ordinary(1), tiny_bundle.bright(1)):
                await ends("ModelInfer", images)
            await ends("ModelInfer", tiny_bundle.ordinary(1), name="stranger")
            guarded.upstream.fail = (grpc.StatusCode.DATA_LOSS, "lost", ())
            await ends("ModelInfer", tiny_bundle.ordinary(1))
            for method in ("ServerLive", "ModelMetadata", "ModelConfig", "ModelStatistics", "Unheard"):
                await ends(method, b"")
            assert {code for _, code in seen} == {"OK", "PERMISSION_DENIED", "NOT_FOUND", "DATA_LOSS", "UNIMPLEMENTED"}
            for (method, code), count in seen.items():
                label = "other" if method == "Unheard" else method
                found = await guarded.metric("grpc_server_handled_total", grpc_method=label, grpc_code=code)
                assert found == count, (method, code)
            assert await guarded.metric("grpc_server_handled_total") == sum(seen.values())
            for end, count in (("answered", 2), ("refused", 2), ("failed", 1), ("expired", 0)):
                assert await guarded.metric("guard_request_seconds_count", end=end) == count

    asyncio.run(story())


def test_the_status_of_a_call_is_that_of_what_ended_it() -> None:
    for leaf in leaves():
        if not issubclass(leaf, UserError):
            call = Call(None)
            call.ended(leaf("x"))
            assert call.code == leaf.status
    call = Call(None)
    assert call.code == "OK"
    call.ended(RuntimeError("x"))
    assert call.code == "INTERNAL"
    assert [Call(None, end=end).code for end in ("cancelled", "expired")] == ["CANCELLED", "DEADLINE_EXCEEDED"]


def test_process_and_build_are_told(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle) as guarded:
            pages = await guarded.metric("process_resident_memory_bytes") / os.sysconf("SC_PAGESIZE")
            assert pages == int(pages) > 1000
            assert await guarded.metric("process_cpu_seconds_total") > 0
            assert await guarded.metric("python_info", version=platform.python_version()) == 1
            assert await guarded.metric("python_gc_collections_total") > 0
            labels = build_labels()
            assert labels["grpcio"] == grpc.__version__
            assert await guarded.metric("guard_build_info", **labels) == 1

    asyncio.run(story())


def test_a_version_is_that_of_what_is_installed() -> None:
    assert version_of("no-such-thing") == MISSING
    assert version_of("no-such-thing", "grpcio") == grpc.__version__
    assert version_of(*RUNTIMES) != MISSING
