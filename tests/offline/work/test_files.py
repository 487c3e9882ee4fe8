"""Files that are whole or not there, read by several threads."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.offline.work.files import read_arrays, write_arrays


def test_no_two_threads_read_heads_of_arrays_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.11 ends a training with a SystemError where two threads parse literals side by side."""
    file, arrays = tmp_path / "kept.npz", {name: np.arange(3.0) for name in "abcd"}
    write_arrays(file, arrays)
    inside, alone = threading.Semaphore(1), []
    parse: Callable[[str], Any] = ast.literal_eval

    def slow(text: str) -> Any:
        free = inside.acquire(blocking=False)
        alone.append(free)
        time.sleep(0.002)
        if free:
            inside.release()
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_arrays(file), range(8)))
    assert all(alone)
    assert len(alone) == 8 * len(arrays)
    assert all(one is not None and np.array_equal(one["d"], arrays["d"]) for one in found)
