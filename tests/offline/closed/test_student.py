"""The student alone: it takes items of every kind, and learns what is asked on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guard.offline.closed.student import blank_student, distil


def shares(items: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answers by which half of an item's values is larger on average."""
    halves = items.reshape(len(items), 2, math.prod(items.shape[1:]) // 2).mean(axis=2)
    return np.eye(2, dtype=np.float32)[(halves[:, 0] > halves[:, 1]).astype(np.int64)]


@pytest.mark.parametrize("shape", [(6,), (2, 24), (1, 24), (2, 8, 8)], ids=str)
def test_a_student_learns_from_items_of_every_kind(shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).random((400, *shape), np.float32)
    drawn.reshape(400, 2, -1)[:, 0] *= np.random.default_rng(1).uniform(0.4, 1.6, (400, 1))
    clean, unseen = np.split(drawn.clip(0, 1), 2)
    generator = torch.Generator().manual_seed(0)
    student, asked = distil(shares, clean, grid=None, questions=900, generator=generator, tell=lambda _: None)
    right = student(torch.from_numpy(unseen)).argmax(dim=1).numpy() == shares(unseen).argmax(axis=1)
    assert right.mean() > 0.85
    assert len(clean) < asked <= 900
    again = blank_student(shape, 2)
    again.load_state_dict(student.state_dict())
    torch.testing.assert_close(again.eval()(torch.from_numpy(unseen)), student(torch.from_numpy(unseen)))
