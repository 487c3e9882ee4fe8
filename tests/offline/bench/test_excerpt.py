"""Excerpts of compiled programs say what the whole program says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from guard.bundle import Bundle
from guard.errors import BundleError
from guard.offline.bench.excerpt import (
    BACKWARD,
    FORWARD,
    ROWS,
    columns,
    depthwise,
    excerpt,
    parts,
    read_graph,
    without_detector,
    write_graph,
)
from guard.session import Session
from tests.bench.networks import random_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two detectors a program, so that the second pass and the backward are each for one of them."""
    folder = tmp_path_factory.mktemp("small")
    sharing = ("lid", "summary_classifier", "attribute_steering")
    return random_bundle("small_cnn", folder / "bundle", shape=(1, 8, 8), without=sharing)


def graph_of(bundle: Bundle, program: str) -> onnx.ModelProto:
    return read_graph(bundle.path / f"{program}.onnx")


def loaded(model: onnx.ModelProto, bundle: Bundle, folder: Path) -> Session:
    return Session(write_graph(model, folder / "part.onnx", bundle.path), device="cpu", threads=1)


@pytest.mark.parametrize("program", ["screen", "interpret"])
def test_the_bare_model_says_what_the_program_says_and_computes_nothing_else(
    bundle: Bundle, tmp_path: Path, program: str
) -> None:
    whole = graph_of(bundle, program)
    bare = excerpt(whole, ("logits",))
    (logits,) = loaded(bare, bundle, tmp_path).run(("logits",), bundle.samples.images)
    np.testing.assert_allclose(logits, bundle.samples.logits, rtol=1e-4, atol=1e-5)
    part_of = parts(whole, next(p for p in bundle.manifest.programs if p.name == program).detectors)
    made = {name for node in bare.graph.node for name in node.output}
    assert made == {name for name, part in part_of.items() if part == FORWARD}


def test_without_a_detector_the_others_say_the_same(bundle: Bundle, tmp_path: Path) -> None:
    first = 0
    for program in bundle.manifest.programs:
        for place, name in enumerate(program.detectors):
            lean = without_detector(graph_of(bundle, program.name), program.detectors, name)
            _, scores = loaded(lean, bundle, tmp_path).run(("logits", "scores"), bundle.samples.images)
            others = [first + i for i in range(len(program.detectors)) if i != place]
            np.testing.assert_allclose(scores, bundle.samples.scores[:, others], rtol=1e-4, atol=1e-4)
        first += len(program.detectors)


def test_what_only_one_detector_needs_goes_with_it(bundle: Bundle) -> None:
    (program,) = [p for p in bundle.manifest.programs if p.name == "interpret"]
    whole = graph_of(bundle, "interpret")
    part_of = parts(whole, program.detectors)
    left = {}
    for name in program.detectors:
        lean = without_detector(whole, program.detectors, name)
        left[name] = {part_of[output] for node in lean.graph.node for output in node.output}
    assert {FORWARD, BACKWARD, ROWS, *program.detectors} <= set(part_of.values())
    assert BACKWARD not in left["saliency_classifier"]
    assert ROWS in left["saliency_classifier"]
    assert ROWS not in left["feature_squeezing"]
    assert BACKWARD in left["feature_squeezing"]


def test_a_program_of_one_detector_is_the_bare_model_without_it(bundle: Bundle) -> None:
    lean = without_detector(graph_of(bundle, "screen"), ("only",), "only")
    assert [output.name for output in lean.graph.output] == ["logits"]


def test_an_excerpt_leaves_the_program_as_it_was(bundle: Bundle) -> None:
    whole = graph_of(bundle, "interpret")
    before = whole.SerializeToString(deterministic=True)
    without_detector(whole, ("saliency_classifier", "feature_squeezing"), "feature_squeezing")
    assert whole.SerializeToString(deterministic=True) == before


def test_what_is_not_there_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="gives no verdict; it gives logits, scores"):
        excerpt(graph_of(bundle, "screen"), ("verdict",))
    with pytest.raises(BundleError, match="wanted a Concat of 3 columns"):
        columns(graph_of(bundle, "screen"), ("a", "b", "c"))
    (tmp_path / "torn.onnx").write_bytes((bundle.path / "screen.onnx").read_bytes()[:100])
    with pytest.raises(BundleError, match=r"torn\.onnx is no ONNX graph"):
        read_graph(tmp_path / "torn.onnx")


@pytest.mark.parametrize(
    ("groups", "filters", "found"),
    [
        (1, (8, 8, 3, 3), "dense"),
        (8, (8, 1, 3, 3), "depthwise"),
        (2, (8, 4, 3, 3), "dense"),
        (8, (8, 1, 1, 1), "dense"),
    ],
)
def test_a_depthwise_convolution_filters_each_channel_by_itself(
    groups: int, filters: tuple[int, ...], found: str
) -> None:
    node = helper.make_node("Conv", ["input", "filters"], ["logits"], group=groups)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("input", "logits")]
    weights = numpy_helper.from_array(np.ones(filters, dtype=np.float32), "filters")
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [weights]))
    assert depthwise(model) is (found == "depthwise")
