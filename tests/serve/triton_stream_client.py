"""Runs in the side environment `triton`: an unmodified tritonclient.grpc that streams, told by JSON on standard input.

It imports nothing of ours, and answers in JSON what its callback got, in order.
"""

from __future__ import annotations

import base64
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]  # lives in the side environment only


def main() -> None:
    story = json.loads(sys.stdin.read())
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = triton.InferenceServerClient(story["address"])
    client.start_stream(lambda result, error: found.put((result, error)), headers=story["headers"])
    for request in story["requests"]:
        images = np.frombuffer(base64.b64decode(request["images"]), np.float32).reshape(request["shape"])
        tensor = triton.InferInput("input", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        client.async_stream_infer(story["model"], [tensor], request_id=request["id"])
    answers = [told(*found.get(timeout=20)) for _ in range(story["answers"])]
    client.stop_stream()
    client.close()
    print(json.dumps(answers))


def told(result: Any, error: Any) -> dict[str, Any]:
    if error is not None:
        return {"status": error.status(), "message": error.message()}
    return {"id": result.get_response().id, "logits": result.as_numpy("logits").tolist()}


if __name__ == "__main__":
    main()
