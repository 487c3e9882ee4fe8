"""Runs inside MLServer, in the side environment `mlserver`: a runtime that answers with an ONNX file.

It imports nothing of ours. What the model takes and gives is told by the file, as an MLServer user would have it.
"""

from __future__ import annotations

import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found]  # lives in the side environment only
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
)

DATATYPES = {"tensor(float)": "FP32", "tensor(uint8)": "UINT8", "tensor(int64)": "INT64"}


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """One ONNX file, on one thread; an error of ONNX Runtime is MLServer's to report."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self.inputs = [described(tensor) for tensor in self.session.get_inputs()]
        self.outputs = [described(tensor) for tensor in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        wanted = [output.name for output in payload.outputs or ()] or [tensor.name for tensor in self.outputs]
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        arrays = self.session.run(wanted, feeds)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(wanted, arrays, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def described(tensor: ort.NodeArg) -> MetadataTensor:
    """Name, datatype and shape; an axis that the file leaves open is -1."""
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return MetadataTensor(name=tensor.name, datatype=DATATYPES[tensor.type], shape=shape)
