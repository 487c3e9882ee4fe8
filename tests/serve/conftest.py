"""One tiny bundle for all tests of the sidecar; a bundle is never changed, so they can share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.serve.grpc import acceptor
from tests.serve import tiny_bundle

POSTED_CALLS, GATE_POSTED_CALLS = 4, 32


@pytest.fixture(scope="session", autouse=True)
def few_posted_calls() -> Iterator[None]:
    """A guard in this process asks gRPC's core for fewer calls ahead: to ask and to take back is half of its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptor, "POSTED_CALLS", POSTED_CALLS)
        patch.setattr(acceptor, "GATE_POSTED_CALLS", GATE_POSTED_CALLS)
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("serve") / "bundle").path
