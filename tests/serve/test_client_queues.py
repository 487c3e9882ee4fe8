"""Which queue a client's calls are held against: one flooded model shuts out its own clients and nobody else's."""

from __future__ import annotations

import math

import pytest

from guard.errors import Overloaded
from guard.serve.admission import Admission
from guard.serve.client_queues import MAX_CLIENT_ENTRIES, ClientQueues


def full(admission: Admission, now: float) -> None:
    """Let an admission learn that 100 calls a second leave it, and fill it."""
    for _ in range(100):
        admission.enter(now, math.inf).leave(now + 0.01, inspected=True)
        now += 0.01
    admission.inside = 1000


@pytest.fixture
def queues() -> ClientQueues:
    found = ClientQueues([Admission(), Admission()])
    full(found.admissions[0], 0.0)
    return found


def test_a_client_that_is_not_known_is_let_in_where_there_is_room(queues: ClientQueues) -> None:
    place = queues.begin(queues.of("stranger"), 2.0, 1.0, 1.0)
    assert place is not None
    assert place.of is queues.admissions[1]


def test_a_client_of_one_model_waits_for_that_one_alone(queues: ClientQueues) -> None:
    flooded, calm = queues.admissions
    queues.note("a", flooded)
    queues.note("b", calm)
    assert queues.begin(queues.of("a"), 2.0, 1.0, 1.0) is None
    assert not queues.is_in_time(queues.of("a"), 1.0, 0, 1.0)
    assert queues.begin(queues.of("b"), 2.0, 1.0, 1.0) is not None
    assert queues.is_in_time(queues.of("b"), 1.0, 0, 1.0)


def test_a_client_of_several_models_is_let_in_for_any(queues: ClientQueues) -> None:
    for admission in queues.admissions:
        queues.note("gateway", admission)
    assert queues.of("gateway") is None
    assert queues.begin(queues.of("gateway"), 2.0, 1.0, 1.0) is not None


def test_after_a_reload_a_client_is_known_by_its_new_queue(queues: ClientQueues) -> None:
    queues.note("a", queues.admissions[0])
    new = Admission()
    queues.replace([queues.admissions[1], new])
    assert queues.of("a") is None
    queues.note("a", new)
    assert queues.of("a") is new


def test_where_all_are_full_nobody_is_let_in(queues: ClientQueues) -> None:
    full(queues.admissions[1], 0.0)
    with pytest.raises(Overloaded):
        queues.enter(2.0, 1.0, 1.0)
    assert queues.begin(None, 2.0, 1.0, 1.0) is None


def test_a_place_that_was_taken_in_vain_does_not_count_as_a_departure() -> None:
    admission = Admission()
    place = admission.enter(0.0, 1.0)
    place.withdraw()
    place.withdraw()
    place.tear()
    assert (admission.inside, admission.departures) == (0, 0)


def test_what_is_remembered_is_bounded(queues: ClientQueues) -> None:
    for client in range(MAX_CLIENT_ENTRIES + 10):
        queues.note(client, queues.admissions[0])
    assert len(queues.needed) == MAX_CLIENT_ENTRIES
    assert queues.of(0) is None
    assert queues.of(MAX_CLIENT_ENTRIES + 9) is queues.admissions[0]
