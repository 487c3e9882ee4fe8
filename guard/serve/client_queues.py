"""The memory of which queue each client's calls needed, so that a flood on one model shuts no call for another out.

How it works. A call is let in, or not, before its message is read; which model it is for stands in the message. But a
client mostly asks one model. So its calls are held against that model's queue alone, from the second on. A client that
is not known yet, or asks several models, is let in where any queue has room, and its call is held against the right one
once that is known.

Rule 1: what is remembered is bounded; what is not remembered costs a message that is read in vain, and no call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from guard.errors import Overloaded
from guard.serve.admission import CROWDED, Admission, Place

MAX_CLIENT_ENTRIES = 4096


class ClientQueues:
    """The admissions of all queues, and a memory of the one that each client's calls needed."""

    def __init__(self, admissions: Sequence[Admission] = ()) -> None:
        self.admissions = tuple(admissions)
        self.needed: OrderedDict[Hashable, Admission | None] = OrderedDict()  # None: several

    def replace(self, admissions: Sequence[Admission]) -> None:
        """Hold calls against other queues from now on."""
        self.admissions = tuple(admissions)

    def of(self, client: Hashable) -> Admission | None:
        """The admission that this client's calls need; None where it is not known, or they need several."""
        if len(self.admissions) == 1:
            return self.admissions[0]
        known = self.needed.get(client)
        return known if known in self.admissions else None

    def note(self, client: Hashable, admission: Admission) -> None:
        """Remember what a call of this client needed."""
        known = self.needed.get(client, admission)
        if known is not admission and (known is None or known in self.admissions):
            admission_or_several = None
        else:
            admission_or_several = admission
        self.needed[client] = admission_or_several
        self.needed.move_to_end(client)
        if len(self.needed) > MAX_CLIENT_ENTRIES:
            self.needed.popitem(last=False)

    def candidates(self, needed: Admission | None) -> tuple[Admission, ...]:
        """The admissions that a call may need, of which one is enough to let it in."""
        return self.admissions if needed is None else (needed,)

    def begin(self, needed: Admission | None, now: float, remaining_s: float, inspect_s: float) -> Place | None:
        """Place a call where most room is among what it may need; None where it should not begin now."""
        open_ = [
            one for one in self.candidates(needed) if one.has_room() and one.may_begin(now, remaining_s, inspect_s)
        ]
        try:
            return min(open_, key=lambda one: one.inside).enter(now, remaining_s, inspect_s) if open_ else None
        except Overloaded:
            return None

    def enter(self, now: float, remaining_s: float, inspect_s: float) -> Place:
        """Place a call whose model is not known where most room is. Raises Overloaded where there is none."""
        for admission in sorted(self.admissions, key=lambda one: one.inside):
            if admission.is_in_time(remaining_s, inspect_s=inspect_s):
                return admission.enter(now, remaining_s, inspect_s)
        raise Overloaded(CROWDED)

    def is_in_time(self, needed: Admission | None, remaining_s: float, ahead: int, inspect_s: float) -> bool:
        """Whether a call can be answered by what it may need, where `ahead` others come in before it."""
        return any(one.is_in_time(remaining_s, ahead, inspect_s=inspect_s) for one in self.candidates(needed))
