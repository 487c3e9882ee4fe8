"""Extensions that a server says it has: through the guard only those that work through the guard."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from guard.policy import Mode
from guard.serve.grpc.extensions import IN_REQUESTS, NEEDED_METHODS, working_extensions, works
from guard.serve.grpc.method_groups import opened_methods
from guard.serve.grpc.passage import METHODS
from guard.serve.grpc.wire.inference_pb2 import ServerMetadataResponse
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import guarding

TRITON = (  # as its server lists them
    *("classification", "sequence", "model_repository", "model_repository(unload_dependents)", "schedule_policy"),
    *("model_configuration", "system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "parameters"),
    *("statistics", "trace", "logging"),
)


def test_all_of_tritons_are_known_by_methods_that_exist() -> None:
    assert set(TRITON) == IN_REQUESTS | NEEDED_METHODS.keys()
    assert {method for methods in NEEDED_METHODS.values() for method in methods} <= set(METHODS)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_an_extension_works_where_all_that_it_needs_is_open(mode: Mode) -> None:
    def found(*names: str) -> set[str]:
        return {name for name in (*TRITON, "a_new_one") if works(name, opened_methods(names), mode)}

    assert found() == IN_REQUESTS
    assert found("@read") == IN_REQUESTS | {"model_configuration", "statistics"}
    shared = [method for method in METHODS if "SystemSharedMemory" in method]
    assert found(*shared) - IN_REQUESTS == ({"system_shared_memory"} if mode in ("shadow", "off") else set())
    everything = set(TRITON) if mode in ("shadow", "off") else {name for name in TRITON if "shared" not in name}
    assert found(*METHODS) == everything


def test_what_is_all_true_or_no_metadata_passes_as_it_came() -> None:
    strange = b"\x1a\x08sequence" + b"\xa0\x06\x05"  # with a field that nobody knows
    assert working_extensions(strange, frozenset(), "enforce") is strange
    assert working_extensions(b"\xff", frozenset(), "enforce") == b"\xff"
    reduced = working_extensions(strange + b"\x1a\x05trace", frozenset(), "enforce")
    assert sorted(reduced) == sorted(strange)


def test_through_the_guard(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, FakeUpstream(extensions=TRITON), allow_methods=("@statistics",)) as guarded:
            answer = await guarded.client.call("ServerMetadata", b"")
            found = ServerMetadataResponse.FromString(answer.body)
            assert found.name == "fake"
            assert set(found.extensions) == IN_REQUESTS | {"statistics"}
            assert answer.trailing["guard-id"]

    asyncio.run(story())
