"""Order of the test files: those that take longest begin first, so that processes beside each other end together.

pytest-xdist would begin with the files that hold most tests; one with few long ones then begins last, and all wait.
"""

from __future__ import annotations

import pytest

# More than ten seconds of processor time each, the most first; those measured alone are in their own run.
LONGEST = (
    "tests/offline/attacks/test_table.py",
    "tests/offline/test_evaluate.py",
    "tests/offline/model/gradient/test_input_gradient.py",
    "tests/offline/model/test_vectors.py",
    "tests/test_demo.py",
    "tests/offline/model/onnx_import/test_importer.py",
    "tests/offline/preflight/test_check.py",
    "tests/offline/test_train.py",
    "tests/offline/detectors/test_heads.py",
    "tests/offline/test_one_number.py",
    "tests/offline/bench/test_bench.py",
    "tests/offline/programs/test_parity.py",
    "tests/offline/model/onnx_import/test_channel_last.py",
    "tests/serve/test_fuzz_messages.py",
    "tests/offline/crafting/test_stage.py",
    "tests/test_conftest.py",
    "tests/bench/test_quick.py",
    "tests/offline/adversary/test_descent.py",
    "tests/offline/evidence/test_gather.py",
    "tests/offline/preflight/test_cost.py",
)
RANKS = {file: rank for rank, file in enumerate(LONGEST)}


def rank(item: pytest.Item) -> int:
    """The place of a test's file; all files that are not listed come last, in their own order."""
    return RANKS.get(item.nodeid.partition("::")[0], len(RANKS))
