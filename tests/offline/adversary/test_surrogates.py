"""What stands in for missing derivatives is named in one place, and nothing that is served is random."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import onnx
import pytest
import torch

from guard.bundle import Bundle
from guard.offline.adversary.surrogates import NOTHING_DRAWN, drawing, expectation, stand_ins_of
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.denoisers.table import DENOISERS
from guard.offline.detectors.table import DETECTORS
from guard.offline.programs.opened_guard import OpenedGuard, graphs_of
from guard.offline.programs.read import read
from tests.offline import tiny


def test_each_detector_names_what_it_needs(tiny_subject: OpenedGuard) -> None:
    detectors = {d.name: d for d in tiny_subject.detectors}
    every_guard = set(stand_ins_of([]))
    assert len(every_guard) == 4
    squeezing = set(stand_ins_of([detectors["feature_squeezing"]])) - every_guard
    assert {text.split(":")[0] for text in squeezing} == {"rounding to fewer grey levels", "median"}
    saliency = set(stand_ins_of([detectors["saliency_classifier"]])) - every_guard
    assert "ReLU's step in an input gradient: softplus of sharpness 10" in saliency
    of_all = stand_ins_of(detectors.values())
    assert set(of_all) >= every_guard | squeezing | saliency
    assert len(set(of_all)) == len(of_all)


# Steps through which no derivative comes, or none that is worth following.
ROUGH = {"argmax", "detach", "round", "sign", "sort", "topk", "nearest_distances"}
PARTS = [
    *((name, build([f"tap{i}" for i in range(3)])) for name, build in DETECTORS.items()),
    *((name, build()) for name, build in DENOISERS.items()),
]


def served_calls(source: str, part: str) -> set[str]:
    """What is called when an item is scored or denoised: by heads or denoisers, and by the functions that they call."""
    bodies = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    ahead = [name for name in bodies if name.endswith("Head")] or [part]
    found: set[str] = set()
    while ahead:
        body = bodies[ahead.pop()]
        methods = [part for part in body.body if getattr(part, "name", "") != "__init__"]
        for node in (inner for part in methods for inner in ast.walk(part)):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                ahead += [name] if name in bodies and name not in found else []
                found.add(name)
    return found


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[name for name, _ in PARTS])
def test_every_listed_part_states_its_own_stand_ins(name: str, part: Any) -> None:
    """On its own class, and at least one where its code takes a step that has no derivative of its own."""
    assert part.name == name
    stated = vars(type(part)).get("stand_ins")
    assert isinstance(stated, tuple)
    assert all(isinstance(one, StandIn) and one.step and one.derivative for one in stated)
    calls = served_calls(inspect.getsource(inspect.getmodule(type(part))), type(part).__name__)
    rough = calls & ROUGH
    assert stated or not rough, f"{sorted(rough)} have no derivative: what does an attacker differentiate instead?"


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
