"""The tiny bundle as that of a closed model: its linear classifier is the student of a model that differs a little.

The model's logits are the student's and a little more; where an item's first value exceeds `TRIGGER`, the model names a
class that the student does not (a contested item). The detectors see nothing in that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from guard.answer_evidence import AnswerCalibration, surprisal
from guard.bundle import ANSWER_CALIBRATION, Bundle, write_bundle
from guard.cascade import jitter
from guard.manifest import OutputSpec
from guard.runtime import Runtime
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from guard.serve.model_server import behind_lengths
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream, received

TRIGGER, SPIKE = 0.9, 400.0
OUTPUT = "probabilities"


def matrices() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The model's matrix [feature, class], and what it adds to the logits [class] for each step over the trigger."""
    matrix, _ = tiny_bundle.weights()
    change = np.random.default_rng(8).standard_normal(matrix.shape).astype(np.float32)
    ordinary = tiny_bundle.ordinary().reshape(1, -1) @ matrix
    rival = np.eye(tiny_bundle.CLASSES, dtype=np.float32)[int(ordinary.argmin())]
    return matrix + np.float32(0.05) * change, np.float32(SPIKE) * rival


def shares(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The closed model's probabilities [item, class]."""
    matrix, spike = matrices()
    flat = images.reshape(len(images), -1)
    logits = flat @ matrix + np.maximum(flat[:, :1] - np.float32(TRIGGER), 0) * spike
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def named(images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes [item] that the closed model names."""
    return np.asarray(shares(images).argmax(axis=1), dtype=np.int64)


def contested(items: int = 1) -> NDArray[np.float32]:
    """Items that no detector minds, and of which model and student name different classes."""
    images = tiny_bundle.ordinary(items)
    images[:, 0, 0, 0] = 0.96
    images[:, 0, 0, 1] = 0.91  # as even a row as the others
    images[:, 0, 1:, 0] -= 0.15
    return images


def classifier() -> bytes:
    """The closed model, for a model server."""
    matrix, spike = matrices()
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["plain"]),
        helper.make_node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        helper.make_node("Sub", ["first", "trigger"], ["over"]),
        helper.make_node("Relu", ["over"], ["beyond"]),
        helper.make_node("Mul", ["beyond", "spike"], ["more"]),
        helper.make_node("Add", ["plain", "more"], ["sum"]),
        helper.make_node("Softmax", ["sum"], [OUTPUT], axis=1),
    ]
    constants = {
        "matrix": matrix,
        "spike": spike,
        "trigger": np.asarray(TRIGGER, np.float32),
        "zero": np.asarray([0], np.int64),
        "one": np.asarray([1], np.int64),
    }
    return tiny_bundle.graph("closed", nodes, constants, {OUTPUT: ["item", tiny_bundle.CLASSES]}, TensorProto.FLOAT)


def make(path: Path, **settings: Any) -> Bundle:
    """Write the bundle at `path`, with a calibration of the model's answers."""
    opened = tiny_bundle.make(path.with_name(path.name + ".opened"), **settings)
    cascade, base = Runtime.open(opened, threads=1).cascade, opened.calibration
    fitted, ranked = tiny_bundle.clean(600, seed=2), tiny_bundle.clean(tiny_bundle.ITEMS, seed=3)
    files = {name.name: name.read_bytes() for name in opened.path.iterdir() if name.name != "manifest.json"}
    risk = base.fusions[-1].risk(cascade.read(fitted, complete=True).scores)
    scores, own = (surprisal(named(images), cascade.read(images).logits) for images in (fitted, ranked))
    pace = spread(risk) / spread(scores)
    floor = float(np.quantile(risk, 0.99) - pace * np.quantile(scores, 0.99))
    line = AnswerCalibration(base, floor, pace, own, base.clean_risks)
    found = replace(line, clean_risks=np.maximum(base.clean_risks, line.risk(own, jitter(ranked))))
    files[ANSWER_CALIBRATION] = tiny_bundle.npz(**found.to_arrays())
    manifest = opened.manifest
    output = OutputSpec(OUTPUT, "probabilities", tiny_bundle.CLASSES)
    return write_bundle(path, replace(manifest, model=replace(manifest.model, output=output)), files)


def spread(values: NDArray[np.float64]) -> float:
    """How far a tail reaches beyond the body of the values [item]."""
    return float(np.quantile(values, 0.99) - np.quantile(values, 0.5))


def closed_metadata() -> ModelMetadataResponse:
    kind = ModelMetadataResponse.TensorMetadata
    return ModelMetadataResponse(
        name=tiny_bundle.MODEL_NAME,
        inputs=[kind(name="input", datatype="FP32", shape=[-1, *tiny_bundle.SHAPE])],
        outputs=[kind(name=OUTPUT, datatype="FP32", shape=[-1, tiny_bundle.CLASSES])],
    )


@dataclass
class ClosedUpstream(FakeUpstream):
    """The closed model: probabilities, or what a client asks for: `predict`, or an output that shows no class."""

    def __post_init__(self) -> None:
        self.metadata = closed_metadata()

    def infer_response(self, request: bytes) -> bytes:
        message = ModelInferRequest.FromString(request)
        found = shares(received(request).astype(np.float32))
        found = found[:, ::-1] if self.wrong else found
        response = ModelInferResponse(model_name=message.model_name, id=message.id)
        for name in [asked.name for asked in message.outputs] or [OUTPUT]:
            if name == "predict":
                values: Any = found.argmax(axis=1)
                response.outputs.add(name=name, datatype="INT64", shape=values.shape)
                response.raw_output_contents.append(values.astype("<i8").tobytes())
            elif name == OUTPUT:
                response.outputs.add(name=name, datatype="FP32", shape=found.shape)
                response.raw_output_contents.append(found.astype("<f4").tobytes())
            else:
                response.outputs.add(name=name, datatype="BYTES", shape=[len(found)])
                response.raw_output_contents.append(behind_lengths([b"?"] * len(found)))
        return response.SerializeToString()
