"""The gate of ModelInfer: before anything is spent on a call it gets a place, or the refusal that ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from guard.errors import Expired, GuardError, Overloaded
from guard.serve.admission import CROWDED, Admission, Place
from guard.serve.call import Call, time_left_s
from guard.serve.gatekeeper import Refusal


@dataclass(frozen=True)
class InferGate:
    """The gate that `Acceptor` asks for ModelInfer; `ended` records each call that is not admitted."""

    admission: Admission
    timeout_s: float  # of a call whose client set no deadline
    ended: Callable[[Call], None]

    def deadline(self, context: Any) -> float:
        return time.monotonic() + time_left_s(context, self.timeout_s)

    def client(self, context: Any) -> Hashable:
        return str(context.peer())  # a connection

    def enter(self, deadline: float) -> Place | None:
        now = time.monotonic()
        if not self.admission.has_room() or not self.admission.may_begin(now, deadline - now):
            return None
        try:
            return self.admission.enter(now, deadline - now)
        except Overloaded:
            return None

    def is_hopeless(self, deadline: float, ahead: int) -> bool:
        return not self.admission.is_in_time(deadline - time.monotonic(), ahead)

    def refuse(self, context: Any) -> Refusal:
        call = Call.of(context, timeout_s=self.timeout_s)
        return call.refusal(self.ends(call, Overloaded(CROWDED)))

    def expire(self, context: Any) -> Refusal | None:
        call = Call.of(context, timeout_s=self.timeout_s)
        error = self.ends(call, Expired("the deadline passed before the guard came to it; nothing was forwarded"))
        return call.refusal(error) if call.client_timeout_s is None else None

    def ends(self, call: Call, error: GuardError) -> GuardError:
        call.ended(error)
        self.ended(call)
        return error
