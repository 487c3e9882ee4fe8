"""A Keras-style file, bytes [item, height, width, channel], from training to what its model server receives."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.offline.findings.intervals import rejections_band
from guard.offline.model.onnx_import.importer import relative
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.policy import Action, Policy
from guard.runtime import Runtime
from guard.scoring import score_lines
from guard.serve.grpc.wire.inference_pb2 import ModelInferRequest
from guard.serve.model_server import ServedModel
from tests.offline import tiny
from tests.onnx_files import Keras
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import guarding, infer_request

NAME = "photos"
LEVELS = 15  # bytes a level of the tiny problem's sixteen


def bytes_of(unit: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Unit-space images [item, channel, height, width] -> [item, height, width, channel], on every fifteenth byte."""
    return np.rint(unit * tiny.GRID * LEVELS).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained Keras-style file and its data."""
    folder = tmp_path_factory.mktemp("keras")
    images, labels = tiny.data(600, seed=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Keras(tiny.SHAPE, classes=tiny.CLASSES).requires_grad_()
        seen = bytes_of(images).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        tiny.fitted(model, seen, labels, epochs=12)
    model.write(folder / "keras.onnx")
    images, labels = tiny.data(640, seed=7)
    np.savez(folder / "bytes.npz", images=bytes_of(images), labels=labels)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    given = {"model": str(folder / "keras.onnx"), "data": folder / "bytes.npz", "serves": NAME, "recipe": tiny.brief()}
    return train(tiny.job(folder, **given), Stages(Console(file=io.StringIO())))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Clean wire inputs that the bundle has not seen."""
    return bytes_of(tiny.data(60, seed=31)[0])


def test_the_bundle_says_how_the_wire_is(bundle: Bundle) -> None:
    spec = bundle.manifest.model.input
    assert (spec.name, spec.datatype, spec.layout) == ("image", "UINT8", "NHWC")
    assert (spec.shape, spec.wire_shape, spec.low, spec.high) == ((1, 8, 8), (8, 8, 1), (0.0,), (255.0,))
    assert spec.grid == 255 // LEVELS
    assert bundle.samples.images.dtype == np.uint8
    assert bundle.samples.images.shape[1:] == (8, 8, 1)


def test_its_programs_take_bytes_as_they_travel(bundle: Bundle, images: NDArray[np.uint8], folder: Path) -> None:
    for program in bundle.manifest.programs:
        (given,) = onnx.load(bundle.path / program.file, load_external_data=False).graph.input
        assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [size.dim_value for size in given.type.tensor_type.shape.dim][1:] == [8, 8, 1]
    found = Runtime.open(bundle, threads=1).read(images)
    request = infer_request(images)
    request.inputs[0].name = "image"
    answer = ServedModel(folder / "keras.onnx", name=None, version="", threads=1).run(request).raw_output_contents[0]
    probabilities = np.frombuffer(answer, np.float32).reshape(-1, tiny.CLASSES)
    softmax = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
    assert relative(softmax / softmax.sum(axis=1, keepdims=True), probabilities) < 1e-4


def test_clean_items_are_lost_as_promised(bundle: Bundle) -> None:
    lost = Runtime.open(bundle, threads=1).read(bytes_of(tiny.data(500, seed=81)[0])).p_value <= 0.05
    low, high = rejections_band(0.05, bundle.calibration.items, 500)
    assert low <= lost.sum() <= high


def test_score_reads_the_same_file_and_gives_what_the_wire_gives(
    bundle: Bundle, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    np.savez(tmp_path / "some.npz", images=images)
    lines = [json.loads(line) for line in score_lines(bundle.path, tmp_path / "some.npz", device="cpu", threads=1)]
    read = Runtime.open(bundle, threads=1).read(images)
    assert [line["p_value"] for line in lines] == [round(float(p), 6) for p in read.p_value]


def test_the_torch_side_opens_again(bundle: Bundle) -> None:
    subject = Work.beside(bundle).subject(bundle)
    assert subject.classifier.spec == bundle.manifest.model


class Recording(FakeUpstream):
    """The file itself, behind the protocol."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(metadata=model.metadata())
        self.model = model

    async def infer(self, request: bytes, context: Any) -> bytes:
        del context
        self.requests.append(request)
        return self.model.run(ModelInferRequest.FromString(request)).SerializeToString()


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_the_sidecar_repairs_in_the_form_that_it_got(
    bundle: Bundle, images: NDArray[np.uint8], folder: Path, form: str
) -> None:
    runtime = Runtime.open(bundle, threads=1)
    policy = Policy(reject_rate=bundle.manifest.reject_rate, flag_rate=0.5, repair="median")
    judged = [policy.judge(float(p)) for p in runtime.read(images).p_value]
    stable = runtime.repair(images, "median").stable
    judged = [Action.REJECT if a is Action.REPAIR and not s else a for a, s in zip(judged, stable, strict=True)]
    assert judged.count(Action.REPAIR) >= 3
    upstream = Recording(ServedModel(folder / "keras.onnx", name=NAME, version="", threads=1))

    async def send() -> list[grpc.StatusCode]:
        async with guarding(bundle.path, upstream, repair="median", flag_rate=0.5) as guard:
            codes = []
            for image in images:
                request = infer_request(image[None], name=NAME, form=form)
                request.inputs[0].name = "image"
                codes.append((await guard.client.call("ModelInfer", request)).code)
            return codes

    codes = asyncio.run(send())
    assert [code is grpc.StatusCode.PERMISSION_DENIED for code in codes] == [a is Action.REJECT for a in judged]
    received = iter(ModelInferRequest.FromString(request) for request in upstream.requests)
    for image, action in zip(images, judged, strict=True):
        if action is not Action.REJECT:
            wanted = runtime.repair(image[None], "median").images if action is Action.REPAIR else image[None]
            assert wanted.dtype == np.uint8
            message = next(received)
            assert list(message.inputs[0].shape) == [1, 8, 8, 1]
            assert bytes_in(message) == wanted.tobytes()
    assert next(received, None) is None


def bytes_in(message: ModelInferRequest) -> bytes:
    if message.raw_input_contents:
        return message.raw_input_contents[0]
    return bytes(message.inputs[0].contents.uint_contents)
