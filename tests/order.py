"""Order of the test files, and which run in one process: those that take longest begin first, so that all end together.

pytest-xdist would begin with the files that hold most tests; one with few long ones then begins last, and all wait.
"""

from __future__ import annotations

import pytest

# These read the detectors that tests/offline/detectors/fitting.py fits once a process, so one process runs them all.
TOGETHER = (
    "tests/offline/detectors/test_heads.py",
    "tests/offline/evidence/test_gather.py",
    "tests/offline/detectors/test_values.py",
    "tests/offline/detectors/test_magnet.py",
    "tests/offline/detectors/test_mask_classifier.py",
    "tests/offline/detectors/test_outlier_class.py",
    "tests/offline/detectors/test_x_ensemble.py",
)
# More than ten seconds of processor time each, the most first; those measured alone are in their own run.
LONGEST = (
    "tests/bench/test_quick.py",
    "tests/offline/attacks/test_table.py",
    "tests/offline/test_evaluate.py",
    *TOGETHER,
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
    "tests/offline/second/test_training.py",
    "tests/offline/detectors/parts/test_distances.py",
    "tests/offline/attacks/test_target.py",
    "tests/offline/model/onnx_import/test_places.py",
    "tests/offline/model/onnx_import/test_operator_table.py",
)
RANKS = {file: rank for rank, file in enumerate(LONGEST)}


def rank(item: pytest.Item) -> int:
    """The place of a test's file; all files that are not listed come last, in their own order."""
    return RANKS.get(file_of(item.nodeid), len(RANKS))


def group(nodeid: str) -> str:
    """What one process runs: a file, or those that belong together."""
    file = file_of(nodeid)
    return "together" if file in TOGETHER else file


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
