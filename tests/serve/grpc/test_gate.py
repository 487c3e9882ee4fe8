"""Who passes the gate of ModelInfer, by made-up contexts: deadlines and the time for the inspection both count."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc
import pytest

from guard.serve.admission import Admission
from guard.serve.client_queues import ClientQueues
from guard.serve.grpc.call import MAX_DEADLINE_S, Call
from guard.serve.grpc.gate import Admitted, InferGate, TooLate
from guard.serve.grpc.gatekeeper import Refusal


@dataclass
class Context:
    """A client whose deadline is so many seconds away."""

    left_s: float | None

    def time_remaining(self) -> float | None:
        return self.left_s

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


@dataclass
class Books:
    ends: list[str] = field(default_factory=list)

    def gate(self, *, passes_late: bool = False, budget_s: float = 5.0) -> InferGate:
        return InferGate(ClientQueues([Admission()]), budget_s, self.note, passes_late=passes_late)

    def note(self, call: Call) -> None:
        self.ends.append(call.end)


@pytest.mark.parametrize("left_s", [None, 60.0, 2 * MAX_DEADLINE_S])
@pytest.mark.parametrize("passes_late", [True, False])
def test_a_call_waits_no_longer_than_its_inspection_may_take(left_s: float | None, *, passes_late: bool) -> None:
    books = Books()
    gate, context = books.gate(passes_late=passes_late), Context(left_s)
    began = time.monotonic()
    moments = gate.moments(context)
    assert began + 5.0 <= moments.first <= time.monotonic() + 5.0
    end = gate.expire(context, moments)
    if passes_late:
        assert isinstance(end, TooLate)
        assert books.ends == []  # it is not over
    else:
        assert isinstance(end, Refusal)
        assert end.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert books.ends == ["refused"]


def test_a_client_whose_deadline_comes_first_knows_by_itself() -> None:
    books = Books()
    gate, context = books.gate(), Context(0.01)
    assert gate.expire(context, gate.moments(context)) is None
    assert books.ends == ["expired"]


def test_who_is_admitted_has_what_is_left_of_the_time() -> None:
    gate = Books().gate()
    moments = gate.moments(Context(None))
    ticket = gate.enter(moments)
    assert isinstance(ticket, Admitted)
    assert ticket.inspect_by == moments.inspected
    assert gate.queues.admissions[0].inside == 1
    ticket.tear()
    ticket.tear()
    assert gate.queues.admissions[0].inside == 0


def test_nothing_is_hopeless_for_want_of_time_to_inspect_it_where_that_passes() -> None:
    for passes_late in (True, False):
        gate = Books().gate(passes_late=passes_late, budget_s=0.0)
        assert gate.is_hopeless(gate.moments(Context(None)), 0) is not passes_late
        assert gate.is_hopeless(gate.moments(Context(0.0)), 0)
