"""Order of the test files: those that take longest begin first, so that processes beside each other end together.

pytest-xdist would begin with the files that hold most tests; one with few long ones then begins last, and all wait.
"""

from __future__ import annotations

import pytest

# More than ten seconds of processor time each, the most first; those measured alone are in their own run.
LONGEST = (
    "tests/bench/test_quick.py",
    "tests/offline/attacks/test_table.py",
    "tests/offline/test_evaluate.py",
    "tests/offline/detectors/test_heads.py",
    "tests/offline/model/gradient/test_input_gradient.py",
    "tests/test_demo.py",
    "tests/zoo/test_zoo.py",
    "tests/offline/preflight/test_check.py",
    "tests/offline/model/onnx_import/test_operator_properties.py",
    "tests/offline/model/onnx_import/test_importer.py",
    "tests/deploy/test_rendered_pod.py",  # most of it waits
    "tests/offline/bench/test_bench.py",
    "tests/offline/test_train.py",
    "tests/offline/job/test_job.py",
    "tests/offline/crafting/test_stage.py",
    "tests/offline/model/test_vectors.py",
    "tests/offline/job/test_series.py",
    "tests/offline/test_one_number.py",
    "tests/offline/closed/test_study.py",
    "tests/serve/test_draining.py",
    "tests/test_conftest.py",
    "tests/offline/evidence/test_gather.py",
    "tests/offline/second/test_training.py",
    "tests/offline/detectors/parts/test_distances.py",
    "tests/offline/attacks/test_target.py",
    "tests/offline/model/onnx_import/test_places.py",
    "tests/offline/model/onnx_import/test_operator_table.py",
)
RANKS = {file: rank for rank, file in enumerate(LONGEST)}


def rank(item: pytest.Item) -> int:
    """The place of a test's file; all files that are not listed come last, in their own order."""
    return RANKS.get(item.nodeid.partition("::")[0], len(RANKS))
