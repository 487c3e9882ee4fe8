"""What stands in for missing derivatives is named in one place, and nothing that is served is random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from guard.bundle import Bundle
from guard.offline.adversary.surrogates import NOTHING_DRAWN, drawing, expectation, stand_ins_of
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.denoisers.table import DENOISERS
from guard.offline.programs.opened_guard import OpenedGuard, graphs_of
from guard.offline.programs.read import read
from tests.offline import tiny
from tests.offline.denoisers.prepared import prepared
from tests.offline.rough_steps import faults


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


@pytest.mark.parametrize("name", DENOISERS)
def test_every_listed_denoiser_can_be_differentiated_or_states_its_stand_ins(name: str) -> None:
    """Images on the grid and between: a squeezed image has a derivative, and the very values that are served."""
    assert well_stated(DENOISERS[name]())
    images = torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    vectors = [images.flatten(1)] if "vectors" in DENOISERS[name]().kinds else []
    for given in (images, torch.round(images * tiny.GRID) / tiny.GRID, *vectors):
        denoiser = prepared(name, tuple(given.shape[1:]))
        assert denoiser.name == name
        assert faults(denoiser.stand_ins, denoiser, given) == []


def well_stated(part: Any) -> bool:
    """On its own class, and in words."""
    stated = vars(type(part)).get("stand_ins")
    return isinstance(stated, tuple) and all(isinstance(one, StandIn) and one.step and one.derivative for one in stated)


def coarse(values: Tensor) -> Tensor:
    return (values * 4).round() / 4


HELD, THROUGH = StandIn("class named", "this step's class, held"), StandIn("rounding", "the identity")
PLANTED: dict[str, tuple[tuple[StandIn, ...], Callable[..., Tensor], str]] = {
    "rounds, and says nothing": ((), lambda a, b: coarse(a) + b, "round: what does"),
    "rounds, and only says that it does not matter": ((THROUGH,), lambda a, b: coarse(a) + b, "no derivative"),
    "holds all that it sees": ((HELD,), lambda a, b: coarse(a) + coarse(b), "no derivative"),
    "hides one input": ((), lambda a, b: a.detach() + b, "detach: what does"),
    "hides one input without a name for it": ((), lambda a, b: torch.tensor(a.tolist()) + b, "no derivative"),
    "saturates": ((), lambda a, b: (a + 9).clamp(0, 1) + (b + 9).clamp(0, 1), "no derivative"),
    "is smooth for attackers alone": ((THROUGH,), lambda a, b: a + b if a.requires_grad else coarse(a) + b, "another"),
    "divides by nothing": ((), lambda a, b: (a - a).sqrt() + b, "not finite"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_step_without_its_stand_in_is_found(name: str) -> None:
    stated, served, said = PLANTED[name]
    one, other = torch.rand((2, 8, 3), generator=torch.Generator().manual_seed(0))
    assert any(said in fault for fault in faults(stated, served, one, other)), faults(stated, served, one, other)


def test_what_needs_no_stand_in_is_left_alone() -> None:
    one, other = torch.rand((2, 8, 3), generator=torch.Generator().manual_seed(0))
    through: Callable[..., Tensor] = lambda a, b: BitDepth(2)(a) + b  # noqa: E731
    assert faults((), lambda a, b: (a * b).exp().amax(dim=1, keepdim=True), one, other) == []
    assert faults((HELD,), lambda a, b: coarse(a) * b, one, other) == []
    assert faults(BitDepth.stand_ins, through, one, other) == []
    assert faults((), through, one, other) != []


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
