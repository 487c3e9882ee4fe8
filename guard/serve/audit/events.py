"""Audit events: what an operator is told of one request, as a value of JSON. Pure: nothing here writes or sends.

Rule 1: an input that is kept becomes text on the thread that writes it, and not where requests are answered: as JSON an
image of 224 x 224 would take 3 ms.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.judge import Inspection
from guard.policy import Action
from guard.queries.memory import QueryFinding
from guard.serve.inspector import verdict_fields
from guard.serve.query_watch import REASON as QUERY_ATTACK
from guard.serve.query_watch import score_fields

PIECE_BYTES = 48 << 10  # a multiple of 3, so that pieces of base64 join
MAX_INPUT_BYTES = 1 << 20  # of an item in a line; a larger one is left out, and the line says so

# MITRE ATLAS: what the adversary would be doing, if the request is one's.
EVADE, CRAFT, DENY = "AML.T0015", "AML.T0043", "AML.T0029"
ASK, SEARCH = "AML.T0040", "AML.T0043.001"
OF_VERDICTS = (EVADE, CRAFT)
OF_QUERIES = (ASK, SEARCH)
OF_REASONS = {"overloaded": (DENY,), "inspection_timeout": (DENY,)}

NOTHING: Mapping[str, Any] = {}
Event = dict[str, Any]


def verdict_event(
    names: Mapping[str, Any],
    model: str,
    action: str,
    found: Inspection,
    end: str,
    *,
    bundle: str | None = None,
    queries: Mapping[str, Any] = NOTHING,
) -> Event:
    """The event of an inspected request: its verdict was not PASS, or it is part of a query attack (`queries`).

    `end` is how its call ended, `bundle` the digest of the bundle that judged it.
    """
    whole = {} if found.request_p_value is None else {"request_p_value": found.request_p_value}
    judged = {} if bundle is None else {"bundle": bundle}
    facts = {**names, "model": model, **judged, **verdict_fields(found), **whole, **queries, "end": end}
    calm = all(item is Action.PASS for item in found.verdict.items)  # then it is its queries that are suspected
    suspected = () if found.verdict.request is Action.PASS or (queries and calm) else OF_VERDICTS
    return event(action, suspected + (OF_QUERIES if queries else ()), facts)


def query_fields(queried: QueryFinding | None) -> dict[str, Any]:
    """The fields of a request that is part of a query attack, of its principal's or of several together; else none."""
    if queried is None or not (queried.is_attack or queried.is_shared_attack):
        return {}
    scope = "principal" if queried.is_attack else "shared"
    return {"reason": QUERY_ATTACK, "query_scope": scope, **score_fields(queried)}


def unchecked_event(
    names: Mapping[str, Any],
    model: str,
    action: str,
    reason: str,
    queries: Mapping[str, Any] = NOTHING,
    **facts: Any,
) -> Event:
    """The event of a request that was not inspected: passed (`unchecked`), refused (`refused`), or rejected.

    What is rejected is rejected for its queries; of the others some may be part of a query attack, too (`queries`).
    """
    found = {**names, "model": model, **queries, "reason": reason, **facts}
    return event(action, OF_REASONS.get(reason, ()) + (OF_QUERIES if queries else ()), found)


def event(action: str, atlas: tuple[str, ...], facts: Mapping[str, Any]) -> Event:
    """An event of this moment."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": moment, "action": action, "atlas": list(atlas), **facts}


def evidence_fields(found: Inspection) -> dict[str, Any]:
    """What was measured on the worst item: for operators who asked that inputs be kept."""
    worst, readings = found.worst, found.readings
    scores = zip(found.detectors, readings.scores[worst].tolist(), strict=True)
    return {
        "evidence": {
            "scores": {name: score if math.isfinite(score) else None for name, score in scores},
            "logits": [value if math.isfinite(value) else None for value in readings.logits[worst].tolist()],
        },
    }


def as_json(value: Any) -> str:
    """A value as JSON that every parser reads: what is no number, or infinite, is null."""
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """A value of JSON in which numbers that JSON does not have are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def kept_item(image: NDArray[Any]) -> NDArray[Any] | None:
    """A copy of an item of a request, little-endian, which holds nothing else of its message; None: it is too large."""
    return None if image.nbytes > MAX_INPUT_BYTES else np.array(image, dtype=image.dtype.newbyteorder("<"), order="C")


def tensor_fields(image: NDArray[Any]) -> dict[str, Any]:
    """An item of a request: type, shape and, where it is not too large, its bytes (little-endian) in base64."""
    facts = tensor_facts(image)
    if image.nbytes > MAX_INPUT_BYTES:
        return {**facts, "left_out": f"{image.nbytes} bytes, more than {MAX_INPUT_BYTES}"}
    little = np.ascontiguousarray(image, dtype=facts["dtype"])
    return {**facts, "base64": base64.b64encode(little.tobytes()).decode()}


def tensor_facts(image: NDArray[Any]) -> dict[str, Any]:
    """The type, as little-endian, and the shape of an item."""
    return {"dtype": image.dtype.newbyteorder("<").str, "shape": list(image.shape)}


def line_of(event: bytes, kept: NDArray[Any] | None) -> bytes:
    """The line of an event that is JSON already, with the input that it kept as `tensor_fields` has it.

    What is long is encoded in pieces, between which other threads get their turn.
    """
    if kept is None:
        return event + b"\n"
    raw, pieces = memoryview(kept.tobytes()), []
    for start in range(0, len(raw), PIECE_BYTES):
        pieces.append(base64.b64encode(raw[start : start + PIECE_BYTES]))
        time.sleep(0)
    facts = json.dumps(tensor_facts(kept)).encode()
    return b"".join([event[:-1], b', "input": ', facts[:-1], b', "base64": "', *pieces, b'"}}\n'])
