"""Audit events: what an operator is told of one request, as a value of JSON. Pure: nothing here writes or sends."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.judge import Inspection
from guard.serve.inspector import verdict_fields

MAX_INPUT_BYTES = 1 << 20  # of an item in a line; a larger one is left out, and the line says so

# MITRE ATLAS: what the adversary would be doing, if the request is one's.
EVADE, CRAFT, DENY = "AML.T0015", "AML.T0043", "AML.T0029"
OF_VERDICTS = (EVADE, CRAFT)
OF_REASONS = {"overloaded": (DENY,), "inspection_timeout": (DENY,)}

Event = dict[str, Any]


def verdict_event(names: Mapping[str, Any], model: str, action: str, found: Inspection, end: str) -> Event:
    """The event of a request whose verdict was not PASS; `end` is how its call ended."""
    whole = {} if found.request_p_value is None else {"request_p_value": found.request_p_value}
    facts = {**names, "model": model, **verdict_fields(found), **whole, "end": end}
    return event(action, OF_VERDICTS, facts)


def unchecked_event(names: Mapping[str, Any], model: str, action: str, reason: str, **facts: Any) -> Event:
    """The event of a request that was not inspected, and passed (`unchecked`) or was refused for it (`refused`)."""
    return event(action, OF_REASONS.get(reason, ()), {**names, "model": model, "reason": reason, **facts})


def event(action: str, atlas: tuple[str, ...], facts: Mapping[str, Any]) -> Event:
    """An event of this moment."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time, "action": action, "atlas": list(atlas), **facts}


def evidence_fields(images: NDArray[Any], found: Inspection) -> dict[str, Any]:
    """The worst item as it came, and what was measured on it: for operators who asked that inputs be kept."""
    worst, readings = found.worst, found.readings
    scores = zip(found.detectors, readings.scores[worst].tolist(), strict=True)
    return {
        "input": tensor_fields(images[worst]),
        "evidence": {
            "scores": {name: score if math.isfinite(score) else None for name, score in scores},
            "logits": [value if math.isfinite(value) else None for value in readings.logits[worst].tolist()],
        },
    }


def tensor_fields(image: NDArray[Any]) -> dict[str, Any]:
    """An item of a request: type, shape and, where it is not too large, its bytes (little-endian) in base64."""
    little = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<"))
    facts = {"dtype": little.dtype.str, "shape": list(image.shape)}
    if image.nbytes > MAX_INPUT_BYTES:
        return {**facts, "left_out": f"{image.nbytes} bytes, more than {MAX_INPUT_BYTES}"}
    return {**facts, "base64": base64.b64encode(little.tobytes()).decode()}
