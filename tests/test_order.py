"""The longest test files begin first, in this very run too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.order import LONGEST, rank


def test_the_longest_files_begin_first(request: pytest.FixtureRequest, root: Path) -> None:
    assert [file for file in LONGEST if not (root / file).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
    ranks = [rank(item) for item in request.session.items]
    assert ranks == sorted(ranks)


def test_xdist_keeps_the_order(root: Path) -> None:
    (beside,) = [line for line in (root / "Makefile").read_text("utf-8").splitlines() if line.startswith("BESIDE :=")]
    assert "--dist loadfile" in beside
    assert "--no-loadscope-reorder" in beside
