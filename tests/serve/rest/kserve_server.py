"""Runs in the side environment `kserve`: KServe's own model server with a linear model, over V2 REST alone.

python kserve_server.py PORT WEIGHTS.npy    it imports nothing of ours
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from kserve import (  # type: ignore[import-not-found]  # lives in the side environment only
    InferOutput,
    InferResponse,
    Model,
    ModelServer,
)


class Linear(Model):  # type: ignore[misc]
    """A model of one matrix; it answers in bytes where the client asks for that."""

    def __init__(self, name: str, weights: str) -> None:
        super().__init__(name)
        self.matrix = np.load(weights)
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        images = payload.inputs[0].as_numpy()
        logits = (images.reshape(len(images), -1) @ self.matrix).astype(np.float32)
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=payload.inputs[0]._raw_data is not None)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start([Linear("tiny", sys.argv[2])])
