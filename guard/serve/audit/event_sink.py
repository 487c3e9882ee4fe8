"""The sink of audit events: an HTTP server that is sent each as a CloudEvent, from a thread of its own.

Rule 1: an event is sent once. A sink that hangs, refuses or answers with an error costs events, counted by reason.
"""

from __future__ import annotations

import http.client
import socket
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from guard.serve.audit.background import Background, Dropped
from guard.serve.audit.cloud_events import MAX_SENT_INPUT_BYTES, message
from guard.serve.audit.events import Event, tensor_fields
from guard.serve.audit.metrics import AuditMetrics

MAX_WAITING_BYTES = 8 << 20
EVENT_BYTES = 2 << 10  # of an event without its input, about
TIMEOUT_S = 5.0  # for each step of sending: to connect, to write, to read


class EventSink:
    """A sink behind a thread and a bounded queue; one connection, kept while the sink does."""

    def __init__(self, url: str, namespace: str, metrics: AuditMetrics) -> None:
        """Take the sink's URL, and send nothing yet."""
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.source, self.namespace, self.metrics = f"/guard/{socket.gethostname()}", namespace, metrics
        self.background = Background(
            "sink", max_waiting_bytes=MAX_WAITING_BYTES, lost=metrics.losing("sink"), idle=self.connection.close
        )

    def send(self, event: Event, kept: NDArray[Any] | None = None) -> None:
        """Take an event to be sent, with the input that it kept unless that is too large."""
        sent = kept if kept is not None and kept.nbytes <= MAX_SENT_INPUT_BYTES else None
        self.background.submit(EVENT_BYTES + (0 if sent is None else sent.nbytes), partial(self.post, event, sent))

    def post(self, event: Event, kept: NDArray[Any] | None) -> None:
        """Send an event; called on the thread. Raises Dropped."""
        if kept is not None:
            event = {**event, "input": tensor_fields(kept)}
        headers, body = message(event, source=self.source, namespace=self.namespace)
        try:
            status = self.answered(body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise Dropped("timeout" if isinstance(error, TimeoutError) else "unreachable") from error
        if not 200 <= status < 300:
            raise Dropped("status")
        self.metrics.written.labels("sink").inc()

    def answered(self, body: bytes, headers: dict[str, str]) -> int:
        """The status with which the sink answers a message. Raises OSError, HTTPException."""
        kept = self.connection.sock is not None
        try:
            return self.exchange(body, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not kept:  # a connection that was kept may have been closed meanwhile: that says nothing of the sink
                raise
        return self.exchange(body, headers)

    def exchange(self, body: bytes, headers: dict[str, str]) -> int:
        """Post a message and read the answer; what fails ends the connection."""
        try:
            self.connection.request("POST", self.path, body, headers)
            answer = self.connection.getresponse()
            answer.read(1 << 16)
            if not answer.isclosed():  # longer than any answer to an event
                self.connection.close()
            return answer.status
        except BaseException:
            self.connection.close()
            raise
