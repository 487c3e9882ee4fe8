"""Calls side by side: in order, each on one thread of torch, and ended together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import LogOdds
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.work.parallel import Stop, Stopped, cores, side_by_side

both = pytest.mark.parametrize("workers", [1, 2, 3])


@both
def test_results_come_in_the_order_of_the_calls(workers: int) -> None:
    heard: list[int] = []
    found = side_by_side([partial(pow, base, 2) for base in range(9)], workers, Stop(), heard.append)
    assert found == [base**2 for base in range(9)]
    assert heard == list(range(9))


@both
def test_torch_has_one_thread_meanwhile_and_its_own_number_afterwards(workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert side_by_side([torch.get_num_threads] * 4, workers, Stop()) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_two_workers_are_at_it_at_once() -> None:
    meeting = threading.Barrier(2, timeout=10)  # one worker alone would wait here for ever
    assert sorted(side_by_side([meeting.wait, meeting.wait], 2, Stop())) == [0, 1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("calls", [lambda *given: given, lambda *given: given[::-1]], ids=["first", "second"])
def test_what_ends_one_ends_all_at_their_next_look(
    kind: type[BaseException], calls: Callable[..., Sequence[Callable[[], None]]]
) -> None:
    stop, ended, going = Stop(), threading.Event(), threading.Event()

    def endless() -> None:
        model = StoppableModel(lambda images: images, stop)
        going.set()
        try:
            while True:
                model(torch.zeros(1, 2))
        except Stopped:
            ended.set()
            raise

    def failing() -> None:
        going.wait(10)
        raise kind("enough")

    never = threading.Event()
    with pytest.raises(kind, match="enough"):
        side_by_side([*calls(failing, endless), never.set, never.set], 2, stop)
    assert ended.is_set()
    assert not never.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("guard-craft")]


def test_an_interrupt_while_waiting_ends_the_workers_too() -> None:
    stop, model = Stop(), TorchModel(torch.nn.Linear(2, 2).requires_grad_(requires_grad=False))

    def endless() -> None:
        watched = StoppableModel(model, stop)
        while True:
            watched.value_and_gradient(torch.zeros(1, 2), LogOdds(torch.zeros(1, dtype=torch.int64)))

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([int, endless, endless], 2, stop, interrupt)


def test_a_watched_model_is_the_model() -> None:
    model = TorchModel(torch.nn.Linear(2, 3).requires_grad_(requires_grad=False))
    watched, points = StoppableModel(model, Stop()), torch.rand(4, 2)
    objective = LogOdds(torch.zeros(4, dtype=torch.int64))
    assert torch.equal(watched(points), model(points))
    for one, other in zip(
        watched.value_and_gradient(points, objective), model.value_and_gradient(points, objective), strict=True
    ):
        assert torch.equal(one, other)


def test_there_is_a_core() -> None:
    assert cores() >= 1
