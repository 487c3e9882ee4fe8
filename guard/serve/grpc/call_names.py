"""The names of a call by which it is found in other systems' logs and traces: request id, trace id, span id.

Rule 1: they come from the client, so they are cut short and trusted for nothing but finding a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

REQUEST_ID = "x-request-id"
TRACE_PARENT = "traceparent"
MAX_NAME_CHARACTERS = 80
TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def names_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """The ids in a call's metadata: `request_id`, and `trace_id` and `span_id` of a traceparent (W3C Trace Context)."""
    found: dict[str, str] = {}
    for key, value in metadata or ():
        if not isinstance(value, str) or not value:
            continue
        if key == REQUEST_ID:
            found.setdefault("request_id", value[:MAX_NAME_CHARACTERS])
        elif key == TRACE_PARENT and (ids := TRACE.fullmatch(value)):
            found["trace_id"], found["span_id"] = ids.group(1), ids.group(2)
    return found
