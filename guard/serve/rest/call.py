"""A client's HTTP request as a call: its names, the headers that go up and down, and the response to an error.

Rule 1: every call ends in exactly one way of `End`, whatever became of it; metrics and log go by that.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from guard.errors import Expired, GuardError, Overloaded, RequestError, Unauthenticated, UpstreamDown
from guard.serve.admission import Place
from guard.serve.grpc.call_names import MAX_NAME_CHARACTERS, REQUEST_ID, names_of
from guard.serve.grpc.metadata import ENVOY_NEVER_RETRIES
from guard.serve.inference_call import ID, VERDICT, End, new_id
from guard.serve.principal import ANONYMOUS
from guard.serve.request_span import CallEnd, RequestSpan, Traced
from guard.serve.rest.answer import RestAnswer
from guard.serve.rest.headers import Headers, encoded, end_to_end

REASON = "guard-reason"
RETRY_AFTER_S = 1  # told to clients that found the guard full
WITHOUT_BODY = frozenset({204, 304})
CLIENT_LEFT_CODE = 499  # nginx's: for metrics alone, since there is nobody to tell
FAULT_CODE = 500
OK_CODE = 200
INFER_ROUTE = "/v2/models/{model}/infer"  # as traces name it, with a version or without


class FailedAnswer(Exception):
    """An answer of the model server's that tells of an error."""

    def __init__(self, answer: RestAnswer) -> None:
        super().__init__(f"HTTP status {answer.status}")
        self.answer = answer


@dataclass
class RestCall:
    """A request from its arrival to its answer; verdict, items and end are filled in as they become known."""

    headers: Headers  # the client's
    client: Hashable = ""  # its connection
    principal: str = ""  # who calls, where a source tells that
    withheld: frozenset[str] = ANONYMOUS.withheld  # names of headers that do not go up
    deadline: float = math.inf  # HTTP knows none
    inspect_by: float = math.inf
    budget_s: float = math.inf
    id: str = field(default_factory=new_id)
    message_id: str = ""
    told: str | None = None
    items: int = 0
    began: float = field(default_factory=time.monotonic)
    place: Place | None = None
    patience: asyncio.TimerHandle | None = None
    guarded: Any = None
    outcome: Any = None
    audited: Any = None
    queried: Any = None
    span: RequestSpan | None = None
    end: End = "answered"
    error: Exception | None = None

    @property
    def name(self) -> str:
        return self.id

    @property
    def names(self) -> dict[str, str]:
        """The names of the call for a log line: the guard's id, the request's, and those of its trace."""
        who = {"principal": self.principal} if self.principal else {}
        found = names_of(self.headers)
        own = {} if self.span is None else self.span.names
        return {"id": self.id, "request_id": self.message_id[:MAX_NAME_CHARACTERS] or self.id, **found, **own, **who}

    @property
    def failure_code(self) -> str:
        """The HTTP status with which the model server failed, where it did."""
        return f"HTTP_{self.error.answer.status}" if isinstance(self.error, FailedAnswer) else UpstreamDown.status

    def remaining_s(self) -> float:
        return math.inf

    @property
    def marks(self) -> Headers:
        """The guard's own headers, for client and upstream alike: neither is told more than the other."""
        return ((ID, self.id),) if self.told is None else ((ID, self.id), (VERDICT, self.told))

    @property
    def upward(self) -> Headers:
        """The headers for the upstream: the client's own and our marks, and a request id if the client gave none."""
        found = self.own_upward()
        return found if self.span is None else self.span.passed_on(found)

    @property
    def traced(self) -> Traced:
        """The call as its span shows it."""
        return Traced(f"POST {INFER_ROUTE}", {"http.request.method": "POST", "http.route": INFER_ROUTE}, self.headers)

    @property
    def ending(self) -> CallEnd:
        """The end of a call that is over, as its span shows it."""
        status = self.status
        return CallEnd({"http.response.status_code": status}, failed=status >= FAULT_CODE)

    @property
    def status(self) -> int:
        """The HTTP status with which a call that is over has ended."""
        if self.end == "answered":
            return OK_CODE
        if isinstance(self.error, FailedAnswer):
            return self.error.answer.status
        if isinstance(self.error, RequestError):
            return self.error.http_status
        return CLIENT_LEFT_CODE if self.error is None else FAULT_CODE

    def own_upward(self) -> Headers:
        """The headers for the upstream, but for the names of a trace."""
        own = tuple(header for header in end_to_end(self.headers) if header[0] not in self.withheld)
        if any(name == REQUEST_ID for name, _ in own):
            return (*own, *self.marks)
        name = self.message_id[:MAX_NAME_CHARACTERS]
        return (*own, (REQUEST_ID, name if name.isascii() and name.isprintable() and name else self.id), *self.marks)

    def ended(self, error: Exception) -> None:
        """Record the error that ended the call, and with it the way in which the call ended."""
        self.error = error
        if isinstance(error, Expired):
            self.end = "expired"
        else:
            self.end = "failed" if isinstance(error, UpstreamDown | FailedAnswer) else "refused"

    def forget(self) -> None:
        """Drop error, outcome and model: an error's traceback holds its frames, and these the body and this call."""
        self.error = self.outcome = self.guarded = self.audited = self.queried = None

    def delivered(self, answer: RestAnswer) -> Response:
        """The response with the model server's answer as it came, and our marks."""
        return response(answer.status, (*answer.headers, *self.marks), answer.body)

    def refusal(self, error: Exception) -> Response:
        """The response for an error: ours with its reason, the model server's as it came, a fault by the id only."""
        if isinstance(error, FailedAnswer):
            return self.delivered(error.answer)
        known = isinstance(error, GuardError)
        status = error.http_status if isinstance(error, RequestError) else FAULT_CODE
        reason = error.reason if isinstance(error, GuardError) else "INTERNAL"
        text = str(error) if known else f"the guard failed; guard-id {self.id}"
        headers = (("content-type", "application/json"), *self.marks, (REASON, reason), *more_headers(error))
        return response(status, headers, json.dumps({"error": text}).encode())


def more_headers(error: Exception) -> Headers:
    """The headers that HTTP wants beside some statuses."""
    if isinstance(error, Overloaded):
        return (("retry-after", str(RETRY_AFTER_S)),)
    if isinstance(error, GuardError) and not error.may_retry:
        return (ENVOY_NEVER_RETRIES,)
    return (("www-authenticate", "Bearer"),) if isinstance(error, Unauthenticated) else ()


def response(status: int, headers: Headers, body: bytes = b"") -> Response:
    """A response with exactly these headers, and its length."""
    found = Response(body, status)
    length = () if status in WITHOUT_BODY else (("content-length", str(len(body))),)
    found.raw_headers = encoded((*headers, *length))
    return found
