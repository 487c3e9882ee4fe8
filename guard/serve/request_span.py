"""The spans of one request in the operator's traces: the call as a whole, and its stages.

How it works. A span of a stage is written once the stage is over, from how long it took: no context travels through
the code, and where nothing is traced, nothing but a variable is looked at. The queue finds the span of the request that
waits in `REQUEST_SPAN`, which belongs to the task that answers its call.

Rule 1: traces are the operator's, so p-values may stand in them; a client gets nothing of them, and the upstream the
        ids alone.
Rule 2: no fault of a tracer is a fault of a request: it costs spans.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

Metadata = tuple[tuple[str, str | bytes], ...]
Attributes = Mapping[str, str | bool | int | float]


@dataclass(frozen=True)
class Traced:
    """A call as its span shows it: a name, attributes by the semantic conventions, and the client's headers."""

    name: str
    attributes: Attributes
    headers: Metadata


@dataclass(frozen=True)
class CallEnd:
    """The end of a call as its span shows it."""

    attributes: Attributes
    failed: bool  # by the server's fault


class MetadataGetter(Getter[Metadata]):
    """The reader of a trace's names in a call's metadata."""

    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        return [value for name, value in carrier if name == key and isinstance(value, str)] or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


GETTER = MetadataGetter()
FAULTS_COST_SPANS = suppress(Exception)


@dataclass(frozen=True)
class Tracing:
    """A tracer, and how traces travel from one process to the next."""

    tracer: Tracer
    propagator: TextMapPropagator

    def begin(self, call: Traced, *, ago_s: float) -> RequestSpan | None:
        """Begin the span of a call that came `ago_s` ago, below the client's span where it names one."""
        with FAULTS_COST_SPANS:
            parent = self.propagator.extract(call.headers, context=Context(), getter=GETTER)
            span = self.tracer.start_span(
                call.name,
                context=parent,
                kind=SpanKind.SERVER,
                attributes=call.attributes,
                start_time=before(ago_s),
            )
            found = RequestSpan(self, call, span, set_span_in_context(span, Context()))
            REQUEST_SPAN.set(found)
            return found
        return None


@dataclass(eq=False)
class RequestSpan:
    """The span of a request that is under way."""

    tracing: Tracing
    call: Traced
    span: Span
    context: Context  # in which the span is the parent
    asking: Span = INVALID_SPAN  # of the call to the model server, while that is under way

    @property
    def names(self) -> dict[str, str]:
        """The ids by which lines of the log are found from the trace."""
        ids = self.span.get_span_context()
        return {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"} if ids.is_valid else {}

    def mark(self, attributes: Attributes) -> None:
        with FAULTS_COST_SPANS:
            self.span.set_attributes(attributes)

    def stage(self, name: str, took_s: float, attributes: Attributes | None = None) -> None:
        """Write the span of a stage that is just over."""
        if self.span.is_recording():
            with FAULTS_COST_SPANS:
                start = before(took_s)
                self.tracing.tracer.start_span(name, self.context, attributes=attributes, start_time=start).end()

    @contextmanager
    def upstream(self) -> Iterator[None]:
        """Be in the span of a call to the model server, which `passed_on` tells it as its parent."""
        with FAULTS_COST_SPANS:
            self.asking = self.tracing.tracer.start_span(
                "guard.upstream", self.context, kind=SpanKind.CLIENT, attributes=self.call.attributes
            )
        failed: Attributes = {}
        try:
            yield
        except BaseException as error:
            failed = {"error.type": code_of(error)}
            raise
        finally:
            finish(self.asking, failed, failed=bool(failed))

    def passed_on(self, headers: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        """The headers of a call to the model server, with the names of its span in place of the client's."""
        if not self.asking.get_span_context().is_valid:
            return headers
        names: dict[str, str] = {}
        with FAULTS_COST_SPANS:
            self.tracing.propagator.inject(names, context=set_span_in_context(self.asking, Context()))
        stale = names.keys() | ({"tracestate"} if "traceparent" in names else set())
        return (*((key, value) for key, value in headers if key not in stale), *names.items())

    def end(self, ending: CallEnd, attributes: Attributes) -> None:
        """End the span of a call that is over."""
        finish(self.span, {**ending.attributes, **attributes}, failed=ending.failed)


REQUEST_SPAN: ContextVar[RequestSpan | None] = ContextVar("REQUEST_SPAN", default=None)


def write_program_span(requests: Sequence[RequestSpan], took_s: float, *, items: int, failed: bool) -> None:
    """Write the span of a batch that is just over: below its first request that is traced, and linked with them all."""
    traced = [request for request in dict.fromkeys(requests) if request.span.is_recording()]
    if not traced:
        return
    first = traced[0]
    with FAULTS_COST_SPANS:
        span = first.tracing.tracer.start_span(
            "guard.program",
            first.context,
            attributes={"guard.items": items, "guard.requests": len(traced)},
            links=[Link(request.span.get_span_context()) for request in traced],
            start_time=before(took_s),
        )
        finish(span, {}, failed=failed)
        for request in traced[1:]:
            request.span.add_link(span.get_span_context())


def finish(span: Span, attributes: Attributes, *, failed: bool) -> None:
    """End a span with further attributes, as failed where that is so."""
    with FAULTS_COST_SPANS:
        span.set_attributes(attributes)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def before(ago_s: float) -> int:
    """The time so many seconds ago, as traces have it: in nanoseconds since 1970."""
    return time.time_ns() - int(ago_s * 1e9)


def code_of(error: BaseException) -> str:
    """The name of the status that an error stands for, or of its type."""
    code: Any = getattr(error, "code", None)
    if callable(code):
        return str(code().name)
    return str(getattr(error, "status", type(error).__name__))
