"""What stands in for missing derivatives is named in one place, and nothing that is served is random."""

from __future__ import annotations

import onnx
import pytest
import torch

from guard.bundle import Bundle
from guard.offline.adversary.surrogates import NOTHING_DRAWN, SURROGATES, drawing, expectation, surrogates_of
from guard.offline.programs.opened_guard import OpenedGuard, graphs_of
from guard.offline.programs.read import read
from tests.offline import tiny


def test_each_detector_names_what_it_needs(tiny_subject: OpenedGuard) -> None:
    detectors = {d.name: d for ds in tiny_subject.programs.values() for d in ds}
    everywhere = set(surrogates_of([detectors["mahalanobis"]])) - {
        "class that the model names: this step's class, held"
    }
    squeezing = set(surrogates_of([detectors["feature_squeezing"]])) - everywhere
    assert {text.split(":")[0] for text in squeezing} == {"rounding to fewer grey levels", "median"}
    saliency = set(surrogates_of([detectors["saliency_classifier"]])) - everywhere
    assert "ReLU's step in an input gradient: softplus of sharpness 10" in saliency
    assert set(surrogates_of(detectors.values())) >= everywhere | squeezing | saliency
    assert len({surrogate.step for surrogate in SURROGATES}) == len(SURROGATES)


def test_nothing_is_random_for_a_request(tiny_bundle: Bundle, tiny_subject: OpenedGuard) -> None:
    """So there is nothing to average over: another state of every generator gives the same evidence and readings."""
    assert expectation(graphs_of(tiny_bundle)) == NOTHING_DRAWN
    images = tiny.data(6, seed=3)[0]
    program, found = tiny_subject.joint(), []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with torch.no_grad():
                found.append((program.evidence(torch.from_numpy(images)), read(tiny_subject.cascade, images)))
    (evidence, readings), (other, again) = found
    assert all(torch.equal(value, other[need]) for need, value in evidence.items())
    assert (readings.risk == again.risk).all()
    assert (readings.scores == again.scores).all()


def test_a_program_that_draws_is_refused() -> None:
    node = onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[1])
    graph = onnx.helper.make_graph([node], "draws", [], [onnx.helper.make_tensor_value_info("noise", 1, [1])])
    graphs = {"screen": onnx.helper.make_model(graph).SerializeToString()}
    assert drawing(graphs) == {"screen": ("RandomNormal",)}
    with pytest.raises(ValueError, match=r"must average over that"):
        expectation(graphs)
