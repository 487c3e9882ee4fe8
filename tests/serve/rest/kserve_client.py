"""Runs in the side environment `kserve`: an unmodified client of KServe's, told by JSON on standard input.

It imports nothing of ours, and answers in JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import (  # type: ignore[import-not-found]  # lives in the side environment only
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)


async def main() -> None:
    story = json.loads(sys.stdin.read())
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    url, model = f"http://{story['address']}", story["model"]
    found: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
        "answers": [await infer(client, url, model, request) for request in story["requests"]],
    }
    print(json.dumps(found))


async def infer(client: Any, url: str, model: str, request: dict[str, Any]) -> dict[str, Any]:
    images = np.frombuffer(base64.b64decode(request["images"]), np.float32).reshape(request["shape"])
    tensor = InferInput("input", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=request["binary"])
    headers: dict[str, str] = {}
    try:
        answer = await client.infer(
            url,
            InferRequest(model, [tensor], request_id=request["id"]),
            model_name=model,
            response_headers=headers,
        )
    except httpx.HTTPStatusError as error:
        return {"status": str(error.response.status_code), "message": str(error)}
    return {
        "id": answer.id,
        "logits": answer.outputs[0].as_numpy().tolist(),
        "verdict": headers["guard-verdict"],
    }


if __name__ == "__main__":
    asyncio.run(main())
