"""Verdicts of ONNX Runtime and of torch: the last word on whether two programs are one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from guard.errors import ParityError
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.program import Program
from guard.offline.programs.verdicts import compare_verdicts, in_torch
from tests.offline import tiny

WIRE = tiny.data(160, seed=71)[0]


@pytest.fixture(scope="module")
def programs(tiny_subject: OpenedGuard) -> dict[str, Program]:
    heads = tiny_subject.heads
    return {n: Program(tiny_subject.classifier, [heads[d.name] for d in ds]) for n, ds in tiny_subject.programs.items()}


def test_both_engines_give_the_same_verdicts(tiny_subject: OpenedGuard, programs: dict[str, Program]) -> None:
    found = compare_verdicts(tiny_subject.cascade, programs, WIRE, tiny_subject.rates)
    assert (found.items, found.flipped) == (100, ())
    assert str(found) == "ONNX Runtime and torch: 0 of 100 clean items get another verdict"


def test_torch_follows_the_cascade_that_is_served(tiny_subject: OpenedGuard, programs: dict[str, Program]) -> None:
    cascade = tiny_subject.cascade
    runs = [in_torch(programs[spec.name]) for spec in cascade.programs]
    other, served = cascade.follow(WIRE, runs, complete=False), cascade.read(WIRE)
    np.testing.assert_allclose(other.p_value, served.p_value, atol=3 / (cascade.calibration.items + 1))
    assert np.array_equal(np.isnan(other.scores), np.isnan(served.scores))


def test_other_verdicts_are_refused(tiny_subject: OpenedGuard, programs: dict[str, Program]) -> None:
    other = copy.deepcopy(programs)
    with torch.no_grad():
        other["screen"].heads[0].get_buffer("metrics.0.scale").div_(20)
    with pytest.raises(ParityError, match=r"of 160 clean items get another verdict, e\.g\. item \d+"):
        compare_verdicts(tiny_subject.cascade, other, WIRE, tiny_subject.rates)
