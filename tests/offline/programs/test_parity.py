"""What parity's second rule forgives, and what it does not; its first rule is in test_programs.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guard.agreement import flat, length_apart
from guard.errors import ParityError
from guard.offline.programs.judge import NUDGE_SHARE, Exact
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.outputs import GRADIENT_TOLERANCE
from guard.offline.programs.parity import check_parity, in_parts
from guard.offline.programs.program import Program
from tests.offline import tiny
from tests.offline.told import Told

ITEMS, KINKED = 60, 5


@pytest.fixture(scope="module")
def program(tiny_subject: OpenedGuard) -> Program:
    """One whose score rests on the gradient."""
    return Program(tiny_subject.classifier, [tiny_subject.heads["saliency_classifier"]])


@pytest.fixture(scope="module")
def kinked(program: Program) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Items [item, 1, 8, 8] of which the first lie beside a kink, and their neighbours across it."""
    items, others = tiny.data(ITEMS, seed=41)[0], tiny.data(ITEMS, seed=42)[0]
    exact = Exact.of(program)

    def gradient(points: torch.Tensor) -> NDArray[np.float64]:
        return exact.outputs(points.double())[2]

    named = [exact.outputs(torch.from_numpy(some).double())[0].argmax(axis=1) for some in (items, others)]
    order = np.argsort(named[0] != named[1], kind="stable")  # where the class changes the whole gradient does
    items, others = items[order], others[order]
    low, high = torch.from_numpy(items[:KINKED]).double(), torch.from_numpy(others[:KINKED]).double()
    for _ in range(40):  # the half across which the gradient jumps further
        middle = (low + high) / 2
        left = torch.from_numpy(relative(gradient(low), gradient(middle)) > relative(gradient(middle), gradient(high)))
        far = left.reshape(-1, 1, 1, 1)
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    before, after = low.float(), high.float()
    for parts in (24, 12, 6, 3):  # of the nudge: as far aside as single precision, too, needs to see the jump
        same = torch.from_numpy(jump(program, before, after) <= 10 * GRADIENT_TOLERANCE).reshape(-1, 1, 1, 1)
        aside = (high - low).sign() * NUDGE_SHARE / parts
        before, after = torch.where(same, low - aside, before).float(), torch.where(same, high + aside, after).float()
    assert (jump(program, before, after) > 10 * GRADIENT_TOLERANCE).all()
    assert (relative(gradient(before), gradient(after)) > 10 * GRADIENT_TOLERANCE).all()
    assert (before - after).abs().max() <= NUDGE_SHARE
    return np.concatenate([before.numpy(), items[KINKED:]]), np.concatenate([after.numpy(), items[KINKED:]])


def relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    """Length of each item's difference, relative to what was expected [item]."""
    return np.asarray(length_apart(found, expected) / np.linalg.norm(flat(expected), axis=1))


def jump(program: Program, before: torch.Tensor, after: torch.Tensor) -> NDArray[np.float64]:
    """Relative difference [item] of the gradients that single precision gives."""
    return relative(in_parts(program, before.numpy())[2], in_parts(program, after.numpy())[2])


def test_items_on_kinks_are_forgiven_and_listed(program, kinked):
    wire, across = kinked
    told = in_parts(program, wire)
    told[2] = in_parts(program, across)[2]  # as if rounding had fallen on the other side
    parity = check_parity("p", program, Told(told), wire)
    assert parity.outliers == tuple(range(KINKED))
    assert set(parity.explained) <= set(parity.outliers)
    assert len(parity.explained) >= KINKED - 1  # few nudges may miss the jump of one, which a share of items allows
    assert parity.errors["the input gradient"] <= 1


def test_the_same_differences_elsewhere_are_not(program, kinked):
    wire, across = (np.roll(images, 20, axis=0) for images in kinked)
    told = in_parts(program, wire)
    there = in_parts(program, across)[2]
    told[2][:KINKED] += there[20 : 20 + KINKED] - told[2][20 : 20 + KINKED]  # the jumps, on items that have none
    with pytest.raises(ParityError, match=r"So do 5 of 60 items, e.g. items \[0, 1, 2, 3, 4\]"):
        check_parity("p", program, Told(told), wire)


def test_a_gradient_that_is_a_little_wrong_everywhere_is_not(program, kinked):
    told = in_parts(program, kinked[0])
    told[2] = told[2] * np.float32(1 + 3 * GRADIENT_TOLERANCE)
    with pytest.raises(ParityError, match=r"the input gradient.*5\d of 60 items"):
        check_parity("p", program, Told(told), kinked[0])


def test_half_of_the_items_must_agree_whatever_their_kinks_explain(program, kinked, monkeypatch):
    """A net on a kink at every item could hide anything."""
    monkeypatch.setattr(Exact, "moved", lambda self, unit, truth, scale: 1e6 * np.ones(scale.allowed.shape))
    told = in_parts(program, kinked[0])
    told[2][:25] *= 1.5
    parity = check_parity("p", program, Told(told), kinked[0])
    assert parity.explained == tuple(range(25))
    told[2][25:35] *= 1.5
    with pytest.raises(ParityError, match=r"35 of 60 items.*at least half"):
        check_parity("p", program, Told(told), kinked[0])


@pytest.mark.parametrize(("further", "passes"), [(0.0, True), (10.0, True), (40.0, False)])
def test_what_torch_itself_rounds_off_is_no_disagreement(program, kinked, monkeypatch, further, passes):
    """A score that single precision misses by 5 of what is tolerated on every item, as a deep net does."""
    wire, score = kinked[0], program.compared[1]
    told = in_parts(program, wire)
    tolerated = score.tolerated(program.split(told)[1])[:, None]
    honest = Exact.outputs

    def exact(self: Exact, unit: torch.Tensor) -> list[NDArray[np.float64]]:
        found = honest(self, unit)
        return [found[0], found[1] + 5 * tolerated[:1], found[2]]

    monkeypatch.setattr(Exact, "outputs", exact)
    told[1] = (told[1] - further * tolerated).astype(np.float32)
    told[1][:20] += (1.5 * tolerated[:20]).astype(np.float32)
    if passes:
        assert len(check_parity("p", program, Told(told), wire).explained) >= 20
    else:
        with pytest.raises(ParityError, match="double precision"):
            check_parity("p", program, Told(told), wire)


def test_double_precision_is_another_program(program, kinked):
    """The served program stays in single precision, and the exact one agrees with it."""
    wire = kinked[0][KINKED:]
    exact = Exact.of(program)
    assert next(program.parameters()).dtype == torch.float32
    found = exact.outputs(torch.from_numpy(wire).double())
    assert all(output.dtype == np.float64 for output in found)
    for mine, theirs in zip(found, in_parts(program, wire), strict=True):
        assert np.median(relative(theirs, mine)) < 1e-5


def test_every_listed_detector_has_an_exact_form(tiny_subject: OpenedGuard):
    for name, head in tiny_subject.heads.items():
        program = Program(tiny_subject.classifier, [head])
        wire = tiny.data(8, seed=43)[0]
        exact = Exact.of(program).outputs(torch.from_numpy(wire).double())
        np.testing.assert_allclose(exact[1], in_parts(program, wire)[1], rtol=1e-3, atol=1e-3, err_msg=name)


def test_no_number_is_never_forgiven(program, kinked):
    for place in range(3):
        told = in_parts(program, kinked[0])
        told[place][:1] = np.nan
        with pytest.raises(ParityError):
            check_parity("p", program, Told(told), kinked[0])
