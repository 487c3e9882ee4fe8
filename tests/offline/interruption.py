"""Interruption at the one seam of all long work: where a result is about to be kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from guard.offline.work import store


@contextmanager
def interrupted_at(nth: int, *, folder: str | None = None) -> Iterator[None]:
    """Run the block until its `nth` result is made and not yet kept; it fails where it does not come to that.

    `folder`: only results that go into a folder of this name count.
    """
    numbers, keep = itertools.count(1), store.write_arrays

    def interrupt(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        if folder in (None, file.parent.name) and next(numbers) == nth:
            raise KeyboardInterrupt
        keep(file, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write_arrays", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield
