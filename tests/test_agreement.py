"""Two engines agree on a scale that means something: numbers near zero have no error of their own."""

from __future__ import annotations

import numpy as np
import pytest

from guard.agreement import (
    ROUNDED_SHARE,
    decided_otherwise,
    length_apart,
    logits_apart,
    tolerated_latents,
    tolerated_logits,
)

LOGITS = np.asarray([[3.0, -3.0], [0.001, -0.001], [2.0, -2.0], [60.0, -60.0]])


def test_an_unsure_item_is_judged_by_the_typical_spread() -> None:
    assert tolerated_logits(LOGITS, 1e-4).tolist() == pytest.approx([3e-4, 2.5e-4, 2.5e-4, 6e-3])


def test_what_all_logits_share_is_no_spread() -> None:
    """But what float32 rounds off of it is tolerated."""
    far = np.asarray([[1e4, 1e4 + 1], [1e4, 1e4 - 1]])
    assert tolerated_logits(far, 1e-4).tolist() == pytest.approx([ROUNDED_SHARE * (1e4 + 1), ROUNDED_SHARE * 1e4])
    assert tolerated_logits(far, 0.5).tolist() == pytest.approx([0.25, 0.25])


def test_one_logit_alone_has_the_spread_of_the_items() -> None:
    assert tolerated_logits(np.asarray([[0.0], [1.0], [2.0]]), 0.1).tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_latents_are_judged_by_how_far_items_lie_apart() -> None:
    latents = np.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.01], [0.0, -0.01]]) + np.asarray([50.0, 0.0])
    assert tolerated_latents(latents, 0.1).tolist() == pytest.approx([0.1, 0.1, 0.0505, 0.0505])
    assert length_apart(latents, latents + np.asarray([3.0, 4.0])).tolist() == pytest.approx([5.0] * 4)


def test_a_tie_is_no_other_decision() -> None:
    allowed = np.full(4, 1e-3)
    found = LOGITS.copy()
    found[1] = [-0.0005, 0.0005]
    assert not decided_otherwise(found, LOGITS, np.full(4, 1e-3)).any()
    assert decided_otherwise(found, LOGITS, np.full(4, 1e-4)).tolist() == [False, True, False, False]
    assert decided_otherwise(LOGITS[:, ::-1], LOGITS, allowed).tolist() == [True, False, True, True]


@pytest.mark.parametrize("place", [0, 1])
def test_no_number_is_never_tolerated(place: int) -> None:
    """Neither where it was found nor where it was expected."""
    values = [LOGITS.copy(), LOGITS.copy()]
    values[place][2, 1] = np.nan
    assert not (logits_apart(*values) <= tolerated_logits(values[1], 1e-4))[2]


def test_no_items_are_no_fault() -> None:
    assert tolerated_logits(LOGITS[:0], 1e-4).shape == logits_apart(LOGITS[:0], LOGITS[:0]).shape == (0,)
