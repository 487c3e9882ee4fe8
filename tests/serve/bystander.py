"""An honest client in a process of its own: it calls all the time, and writes how long each call took.

    {"event": "call", "method": "ServerLive", "began": 12.3, "waited_s": 0.001, "failure": null}

`began` is of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest

from guard.serve.grpc.upstream import path
from guard.serve.log import Log
from tests.serve import tiny_bundle
from tests.serve.guarded import infer_request

CALL_S = 10.0  # after which a call has failed
PAUSE_S = 0.003
METHODS = ("ServerLive", "Check", "ModelInfer")
BYSTANDER = """
import json, sys
from tests.serve.bystander import main
main(**json.loads(sys.argv[1]))
"""


def main(address: str) -> None:
    """Call until killed."""
    log = Log(stream=sys.stderr)
    requests = {
        "ServerLive": (path("ServerLive"), b""),
        "Check": ("/grpc.health.v1.Health/Check", HealthCheckRequest().SerializeToString()),
        "ModelInfer": (path("ModelInfer"), infer_request(tiny_bundle.ordinary(1)).SerializeToString()),
    }
    with grpc.insecure_channel(address) as channel:
        while True:
            for name, (method, body) in requests.items():
                began = time.monotonic()
                failure = call(channel, method, body)
                log.info("call", method=name, began=began, waited_s=time.monotonic() - began, failure=failure)
                time.sleep(PAUSE_S)


def call(channel: grpc.Channel, method: str, body: bytes) -> str | None:
    """Why the call failed; None where it did not."""
    start: Any = channel.unary_unary(method)
    try:
        start(body, timeout=CALL_S)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return None
