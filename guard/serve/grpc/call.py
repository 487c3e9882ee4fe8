"""A client's call: its id, its deadline, and what the client is told at its end.

Rule 1: every call ends in exactly one way of `End`, whatever became of it; metrics and log go by that.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from guard.errors import Expired, GuardError, UpstreamDown
from guard.serve.admission import Place
from guard.serve.grpc.call_names import MAX_NAME_CHARACTERS, REQUEST_ID, names_of
from guard.serve.grpc.gatekeeper import Refusal
from guard.serve.grpc.metadata import NEVER_RETRY, Metadata, end_to_end, may_be_sent
from guard.serve.grpc.upstream import Answer, path
from guard.serve.inference_call import ID, VERDICT, End, new_id
from guard.serve.principal import ANONYMOUS
from guard.serve.request_span import CallEnd, RequestSpan, Traced

DOMAIN = "inference-guard"
MODEL_INFER = path("ModelInfer").removeprefix("/")  # as traces name it
STREAM_INFER = path("ModelStreamInfer").removeprefix("/")
CHECK = "envoy.service.auth.v3.Authorization/Check"
# What is the server's fault, as the semantic conventions of traces have it
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
DETAILS = "grpc-status-details-bin"
MAX_DEADLINE_S = 365 * 86400.0  # a deadline further away is as good as none

NO_ID = b"?" * 16  # the place of the call's id in a prepared status
CLOCKS_DIFFER_S = 0.005  # by which gRPC's timer may run out before ours


@dataclass
class Call:
    """A gRPC call from its arrival to its answer; verdict, items and end are filled in as they become known."""

    context: Any  # grpc.aio.ServicerContext
    deadline: float = math.inf  # the client's, of time.monotonic(); infinite where there is none
    inspect_by: float = math.inf  # the moment, of time.monotonic(), at which the time for the inspection is over
    budget_s: float = math.inf  # that is over then
    id: str = field(default_factory=new_id)
    message_id: str = ""  # that the client's message bears
    number: int = 0  # of a message among those of its stream, from 1; 0 where the call brings one message
    principal: str = ""  # who calls, where a source tells that
    withheld: frozenset[str] = ANONYMOUS.withheld  # names of headers that do not go up
    told: str | None = None  # the verdict, as far as the client may know it
    items: int = 0
    began: float = field(default_factory=time.monotonic)
    place: Place | None = None  # among those that are being inspected
    patience: asyncio.TimerHandle | None = None  # until the place is given to others, as long as no message has come
    guarded: Any = None  # the model that the request is for, once that is known
    outcome: Any = None  # what the method's own service leaves here for its metrics
    asked: Any = None  # the request that the call asks about, with its own `metadata`; None: the call is the request
    audited: Any = None  # its items, where the audit may need them once the call is over
    queried: Any = None  # what the memory of queries tells of it
    span: RequestSpan | None = None  # in the operator's traces
    end: End = "answered"
    error: Exception | None = None  # what ended it, where it was not answered

    @staticmethod
    def of(context: Any) -> Call:
        """Create the call of a context."""
        return Call(context, time.monotonic() + time_left_s(context))

    def forward_timeout_s(self) -> float | None:
        """The timeout of a call to the upstream: the time that is left, None without a deadline. Raises Expired."""
        left = self.remaining_s()
        return None if math.isinf(left) else left

    def remaining_s(self) -> float:
        """The seconds left until the deadline, infinite where there is none. Raises Expired when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Expired("the deadline passed before the request could be forwarded; nothing was forwarded")
        return left

    @property
    def marks(self) -> Metadata:
        """The guard's own metadata, for client and upstream alike: neither is told more than the other."""
        return ((ID, self.id),) if self.told is None else ((ID, self.id), (VERDICT, self.told))

    @property
    def names(self) -> dict[str, Any]:
        """The names of the call for a log line: the guard's id, the request's, those of its trace, and who calls."""
        found = names_of(self.context.invocation_metadata() if self.asked is None else self.asked.metadata)
        who = {"principal": self.principal} if self.principal else {}
        place = {"message": self.number} if self.number else {}
        traced = {} if self.span is None else self.span.names
        own = {"id": self.id, "request_id": self.message_id[:MAX_NAME_CHARACTERS] or self.id}
        return {**own, **found, **traced, **who, **place}

    @property
    def name(self) -> str:
        """The name by which an operator finds the call, or the message of a stream, in the log."""
        return f"{self.id}, message {self.number}" if self.number else self.id

    @property
    def upward(self) -> Metadata:
        """The metadata for the upstream: the client's own and our marks, and a request id if the client gave none."""
        found = self.own_upward()
        return found if self.span is None else self.span.passed_on(found)

    @property
    def traced(self) -> Traced:
        """The call as its span shows it."""
        asked = self.asked
        method = CHECK if asked is not None else STREAM_INFER if self.number else MODEL_INFER
        metadata = self.context.invocation_metadata() if asked is None else asked.metadata
        return Traced(method, {"rpc.system.name": "grpc", "rpc.method": method}, tuple(metadata or ()))

    @property
    def ending(self) -> CallEnd:
        """The end of a call that is over, as its span shows it."""
        return CallEnd({"rpc.response.status_code": self.code}, failed=self.code in SERVER_FAULTS)

    def own_upward(self) -> Metadata:
        """The metadata for the upstream, but for the names of a trace."""
        came = end_to_end(self.context.invocation_metadata())
        own = tuple(pair for pair in came if pair[0] not in self.withheld)
        if any(key == REQUEST_ID for key, _ in own):
            return (*own, *self.marks)
        name = self.message_id[:MAX_NAME_CHARACTERS]
        return (*own, (REQUEST_ID, name if name and may_be_sent(REQUEST_ID, name) else self.id), *self.marks)

    async def deliver(self, answer: Answer) -> bytes:
        """Send the client the upstream's metadata and our marks, and return the body of its answer."""
        if answer.initial:
            await self.context.send_initial_metadata(answer.initial)
        self.context.set_trailing_metadata((*answer.trailing, *self.marks))
        return answer.body

    def ended(self, error: Exception) -> None:
        """Record the error that ended the call, and with it the way in which the call ended."""
        self.error = error
        late = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if isinstance(error, Expired) or (late and time.monotonic() >= self.deadline - CLOCKS_DIFFER_S):
            self.end = "expired"
        elif isinstance(error, (UpstreamDown, grpc.aio.AioRpcError)):
            self.end = "failed"
        else:
            self.end = "refused"

    def fail(self, error: Exception) -> None:
        """Record that the upstream took no more of a stream's messages."""
        self.error, self.end = error, "failed"

    @property
    def code(self) -> str:
        """The name of the gRPC status with which a call that is over has ended."""
        if self.end == "answered":
            return "OK"
        if isinstance(self.error, GuardError):
            return self.error.status
        if isinstance(self.error, grpc.aio.AioRpcError):
            return str(self.error.code().name)
        if self.error is not None:
            return GuardError.status
        return "CANCELLED" if self.end == "cancelled" else Expired.status

    @property
    def client(self) -> Hashable:
        """The client whose call it is: a connection."""
        return str(self.context.peer())

    @property
    def failure_code(self) -> str:
        """The gRPC status with which the upstream failed."""
        return self.error.code().name if isinstance(self.error, grpc.aio.AioRpcError) else UpstreamDown.status

    def forget(self) -> None:
        """Drop error, outcome and model: an error's traceback holds its frames, and these the message and this call."""
        self.error = self.outcome = self.guarded = self.audited = self.queried = None

    def refusal(self, error: GuardError) -> Refusal:
        """The refusal that tells a client of an error: its status, its message and its reason, with our marks."""
        details = str(error)
        status = status_details(error.status, error.reason, details).replace(NO_ID, self.id.encode())
        retries = () if error.may_retry else NEVER_RETRY
        return Refusal(grpc.StatusCode[error.status], details, (*self.marks, (DETAILS, status), *retries))


def time_left_s(context: Any) -> float:
    """The seconds left until a client's deadline; infinite where there is none, or it is as good as none."""
    remaining: float | None = context.time_remaining()
    return math.inf if remaining is None or remaining > MAX_DEADLINE_S else remaining


@lru_cache(maxsize=256)
def status_details(status: str, reason: str, message: str) -> bytes:
    """A serialized google.rpc.Status with its ErrorInfo, and `NO_ID` for the call's id, which has as many bytes."""
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=reason, domain=DOMAIN, metadata={"guard_id": NO_ID.decode()}))
    code = grpc.StatusCode[status].value[0]
    serialized: bytes = Status(code=code, message=message, details=[detail]).SerializeToString()
    return serialized
