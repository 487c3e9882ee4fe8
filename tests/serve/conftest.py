"""One tiny bundle for all tests of the sidecar; a bundle is never changed, so they can share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("serve") / "bundle").path
