"""Runs in the side environment `mlserver`: an unmodified tritonclient.http, told by JSON on standard input.

It imports nothing of ours, and answers in JSON.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]  # lives in the side environment only
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]


def main() -> None:
    story = json.loads(sys.stdin.read())
    client = triton.InferenceServerClient(story["address"])
    model = story["model"]
    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "metadata": client.get_model_metadata(model),
        "extensions": client.get_server_metadata()["extensions"],
        "answers": [infer(client, model, request) for request in story["requests"]],
    }
    try:
        client.get_model_repository_index()
        found["repository"] = "went through"
    except InferenceServerException as error:
        found["repository"] = [error.status(), error.message()]
    client.close()
    print(json.dumps(found))


def infer(client: Any, model: str, request: dict[str, Any]) -> dict[str, Any]:
    images = np.frombuffer(base64.b64decode(request["images"]), np.float32).reshape(request["shape"])
    tensor = triton.InferInput("input", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=request["binary"])
    output = triton.InferRequestedOutput("logits", binary_data=request["binary"])
    packing = {key: request[key] for key in ("request_compression_algorithm", "response_compression_algorithm")}
    try:
        result = client.infer(model, [tensor], request_id=request["id"], outputs=[output], **packing)
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    response = result.get_response()
    return {"id": response.get("id"), "logits": result.as_numpy("logits").tolist()}


if __name__ == "__main__":
    main()
