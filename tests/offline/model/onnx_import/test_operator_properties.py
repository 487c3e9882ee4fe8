"""Any operator of the importer's table, at any shape and setting, gives ONNX Runtime's numbers or is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.offline.model.onnx_import.importer import import_onnx
from guard.offline.model.onnx_import.operator_table import FUNCTIONS
from guard.offline.model.onnx_import.shape_arithmetic import SIZES
from guard.offline.model.several_outputs import single_path
from tests.offline.model.onnx_import import (
    drawn_categories,
    drawn_encoders,
    drawn_layers,
    drawn_learning,
    drawn_norms,
    drawn_places,
    drawn_pointwise,
    drawn_recurrent,
    drawn_shapes,
)
from tests.offline.model.onnx_import.drawn_graphs import Drawn
from tests.offline.model.onnx_import.drawn_sizes import STEPS, arithmetic_on_sizes, branch_on_sizes

TOLERANCE = 1e-5
BATCHES = (3, 1)  # items
EXAMPLES = {  # of each operator: an import takes 40 ms
    drawn_pointwise: 2,
    drawn_layers: 7,
    drawn_norms: 5,
    drawn_shapes: 5,
    drawn_places: 6,
    drawn_recurrent: 4,
    drawn_learning: 4,
    drawn_categories: 8,
    drawn_encoders: 10,
}
DRAWINGS = {kind: drawing for file in EXAMPLES for kind, drawing in file.DRAWINGS.items()}
SIZES_EXAMPLES = 2  # of each step of arithmetic
BRANCH_EXAMPLES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def outcome(drawn: Drawn, file: Path) -> str:
    """Compare the import with ONNX Runtime: `equal`, `refused`, or `no model` where ONNX Runtime has no answer."""
    onnx.save(drawn.model(), file)
    try:
        imported = import_onnx(file, drawn.shape)
    except ModelError as error:
        refusal = str(error)
    else:
        return comparison(single_path(imported.program), drawn, file)
    named = any(f"{kind} (" in refusal for kind in drawn.kinds)
    assert named or "cannot be run with any number of items" in refusal, refusal
    stumbled = "cannot be computed on" in refusal  # over an error of Python's own, where nothing was refused
    assert not stumbled or by_onnx_runtime(drawn, file, drawn.images(drawn.fewest)) is None, refusal
    return "refused"


def comparison(module: torch.nn.Module, drawn: Drawn, file: Path) -> str:
    for items in BATCHES:
        images = drawn.images(max(items, drawn.fewest))
        expected = by_onnx_runtime(drawn, file, images)
        if expected is None:
            return "no model"
        with torch.no_grad():
            found = module(torch.from_numpy(images)).numpy()
        assert_equal(found, expected)
    return "equal"


def by_onnx_runtime(drawn: Drawn, file: Path, images: NDArray[np.float32]) -> NDArray[Any] | None:
    """ONNX Runtime's answers, for as many items at a time as the file is fixed to; None where it has none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    size = drawn.items or len(images)
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        answers = [session.run(None, {"input": np.resize(part, (size, *part.shape[1:]))})[0] for part in parts]
    except Exception:  # noqa: BLE001  its errors have no common type
        return None
    if drawn.classes:
        answers = [np.asarray([[scores[name] for name in drawn.classes] for scores in rows]) for rows in answers]
    return np.concatenate(answers)[: len(images)] if drawn.items else answers[0]


def assert_equal(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    finite = expected[np.isfinite(expected)]
    scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


@pytest.mark.parametrize("kind", sorted(DRAWINGS))
def test_an_operator_gives_what_onnx_runtime_gives_or_is_refused(kind: str, folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=next(many for file, many in EXAMPLES.items() if kind in file.DRAWINGS))
    @given(st.composite(DRAWINGS[kind])())
    def law(drawn: Drawn) -> None:
        assert kind in drawn.kinds
        outcomes[outcome(drawn, folder / "drawn.onnx")] += 1

    law()
    assert outcomes["equal"] >= 1, outcomes


def test_every_operator_of_the_table_is_drawn() -> None:
    assert set(DRAWINGS) == set(FUNCTIONS)


def test_arithmetic_on_sizes_gives_what_onnx_runtime_gives(folder: Path) -> None:
    """Each step of the table comes first in some graphs, and among others in many."""
    seen: set[str] = set()
    outcomes: Counter[str] = Counter()

    @settings(max_examples=SIZES_EXAMPLES)
    @given(st.data())
    def law(first: str, data: st.DataObject) -> None:
        drawn = data.draw(arithmetic_on_sizes(first))
        seen.update(drawn.kinds)
        outcomes[outcome(drawn, folder / "sizes.onnx")] += 1

    for first in STEPS:
        law(first)
    assert set(SIZES) <= seen
    assert outcomes["equal"] >= len(STEPS), outcomes


def test_a_branch_on_sizes_gives_what_onnx_runtime_gives(folder: Path) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=BRANCH_EXAMPLES)
    @given(branch_on_sizes())
    def law(drawn: Drawn) -> None:
        outcomes[outcome(drawn, folder / "branch.onnx")] += 1

    law()
    assert outcomes["equal"] >= BRANCH_EXAMPLES // 2, outcomes
