"""Groups of methods that the operator opens: what they hold, and what the guard then lets through."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from guard.errors import ConfigError
from guard.serve.grpc.method_groups import CHANGING, GROUPS, REPOSITORY_INDEX, opened_methods
from guard.serve.grpc.upstream import path
from tests.serve.guarded import guarding

CHANGES = ("Load", "Unload", "Register", "Unregister", "Setting", "Infer")


def test_a_name_is_a_bare_one_a_full_one_or_a_path() -> None:
    assert opened_methods(("ModelConfig", "other.Service/Do", "/other.Service/Do2")) == {
        path("ModelConfig"),
        "/other.Service/Do",
        "/other.Service/Do2",
    }


def test_groups_read_and_change_nothing() -> None:
    everything = opened_methods(["@read"])
    assert everything == opened_methods([f"@{group}" for group in GROUPS])
    assert not [method for method in everything if any(word in method.rpartition("/")[2] for word in CHANGES)]
    assert opened_methods(["@model-repository"]) == {path("RepositoryIndex"), REPOSITORY_INDEX}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("@statistic", r"no group; did you mean '@statistics'\?"),
        ("@zzz", "groups: @read, @health"),
        *((f"@{group}", f"do not only read.*'{method}'") for group, method in CHANGING.items()),
        ("ModelInfer", "always inspected"),
        ("/inference.GRPCInferenceService/ModelInfer", "always inspected"),
    ],
)
def test_what_cannot_be_opened_is_said(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened_methods([name])


def test_what_a_group_opens_passes_and_nothing_else(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, allow_methods=("@model-config", "@statistics")) as guarded:
            config = await guarded.client.call("ModelConfig", b"request")
            assert config.body == b"config of request"
            assert config.trailing["guard-verdict"] == "unchecked"
            await guarded.client.call("ModelStatistics", b"")  # which this upstream does not have
            assert "ModelStatistics" in guarded.upstream.calls
            for method in ("RepositoryIndex", "RepositoryModelLoad", "TraceSetting"):
                own = guarded.upstream.calls.count(method)  # of the guard itself
                assert (await guarded.client.call(method, b"")).code is grpc.StatusCode.UNIMPLEMENTED
                assert guarded.upstream.calls.count(method) == own

    asyncio.run(story())
