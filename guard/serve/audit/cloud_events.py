"""Audit events as CloudEvents 1.0 in the binary HTTP form, as KServe's logger sends what a model is asked. Pure.

The type is the logger's `org.kubeflow.serving.inference.request`, with its extensions, and the body is a V2 inference
request: its `inputs` are the worst item where inputs are kept, else none; its `parameters` say what the guard found.
Left out are the logger's `endpoint`, `metadata` and `annotations`, of which the guard knows nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from guard.manifest import DATATYPES
from guard.serve.audit.events import Event, as_json, finite

TYPE = "org.kubeflow.serving.inference.request"
CONTENT_TYPE = "application/json"
COMPONENT = "predictor"
MAX_SENT_INPUT_BYTES = 64 << 10  # as JSON a larger one holds the interpreter for too long
SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')  # in a header's value
WIRE_NAMES = {np.dtype(kind).newbyteorder("<").str: name for name, kind in DATATYPES.items()}


def message(event: Event, *, source: str, namespace: str) -> tuple[dict[str, str], bytes]:
    """The headers and the body of an event; `source` is a URI reference."""
    body = as_json(v2_request(event)).encode()
    return headers(attributes(event, source=source, namespace=namespace)), body


def attributes(event: Event, *, source: str, namespace: str) -> dict[str, str]:
    """The CloudEvents attributes of an event; an empty one is left out."""
    number = f"-{event['message']}" if event.get("message") else ""
    found = {
        "id": f"{event['id']}{number}",
        "source": source,
        "type": TYPE,
        "specversion": "1.0",
        "time": str(event["time"]),
        "datacontenttype": CONTENT_TYPE,
        "inferenceservicename": str(event["model"]),
        "namespace": namespace,
        "component": COMPONENT,
    }
    return {name: value for name, value in found.items() if value}


def headers(attributes: Mapping[str, str]) -> dict[str, str]:
    """The headers of the binary HTTP form, values in per cent encoding as the HTTP binding wants (3.1.3.2)."""
    found = {}
    for name, value in attributes.items():
        if name == "datacontenttype":
            found["content-type"] = value
        else:
            found[f"ce-{name}"] = quote(value, safe=SAFE)
    return found


def v2_request(event: Event) -> dict[str, Any]:
    """The inference request that stands for an event."""
    facts = {name: value for name, value in event.items() if name not in ("input", "input_name")}
    name = str(event.get("input_name", "input"))
    return {
        "id": str(event.get("request_id", event["id"])),
        "parameters": {"guard_action": event["action"], "guard_event": as_json(facts)},
        "inputs": v2_inputs(event.get("input"), name),
    }


def v2_inputs(item: Mapping[str, Any] | None, name: str = "input") -> list[dict[str, Any]]:
    """The tensor of an item that an event kept; none where it kept none, or one that is too large.

    A value that is no number, or infinite, becomes null: JSON has no other word for it.
    """
    if item is None or "base64" not in item or len(item["base64"]) > MAX_SENT_INPUT_BYTES * 4 // 3 + 4:
        return []
    values = np.frombuffer(base64.b64decode(item["base64"]), item["dtype"])
    shape = [1, *item["shape"]]
    return [{"name": name, "shape": shape, "datatype": WIRE_NAMES[item["dtype"]], "data": finite(values.tolist())}]
