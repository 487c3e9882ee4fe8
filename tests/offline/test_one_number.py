"""A model that gives one number an item is learned, scored and served as two classes, and its wire stays as it is."""

from __future__ import annotations

import asyncio
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from guard.bundle import Bundle
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from guard.scoring import score_lines
from guard.serve.grpc.answer import prediction
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.serve.log import Log
from guard.serve.model_server import ServedModel
from guard.serve.model_server import serving as model_serving
from guard.serve.server import running
from guard.summary import summarise
from tests.offline import tiny
from tests.onnx_files import write_onnx
from tests.serve.guarded import Answered, calling, config_for, metric_of, until

NAME = "tumour"
COLUMN = 1  # the other patterns of the tiny problem are class 0


def data(items: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, patterns = tiny.data(items, seed)
    return images, (patterns == COLUMN).astype(np.int64)


@cache
def network() -> nn.Module:
    """The tiny network with two classes, as one sigmoid,."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny.network()
        assert isinstance(model, nn.Sequential)
        model[-1] = nn.Linear(16, 2)
        tiny.fitted(model, *data(600, seed=100), epochs=12)
        last = nn.Linear(16, 1)
    with torch.no_grad():
        last.weight.copy_(model[-1].weight[1:] - model[-1].weight[:1])
        last.bias.copy_(model[-1].bias[1:] - model[-1].bias[:1])
    model[-1] = last
    return nn.Sequential(*model, nn.Sigmoid()).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("one-number") / "model.onnx"
    names = {"output_names": ["logits"]}  # the name says nothing: the sigmoid does
    return write_onnx(network(), file, tiny.SHAPE, exporter="legacy", **names)


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    images, labels = data(640, seed=7)
    np.savez(model.with_name("data.npz"), images=images, labels=labels)
    given = {"model": str(model), "serves": NAME, "recipe": tiny.brief()}
    return train(tiny.job(model.parent, **given), Stages(Console(file=io.StringIO())))


def test_the_bundle_says_how_the_wire_is(bundle: Bundle) -> None:
    output = Bundle.open(bundle.path).manifest.model.output
    assert (output.kind, output.classes, output.single) == ("probabilities", 2, True)
    assert "logits, one probability, of class 1 of 2" in summarise(bundle)
    assert Work.beside(bundle).subject(bundle).classifier.spec == bundle.manifest.model


def test_programs_give_two_logits_and_score_names_a_class(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    images, labels = data(50, seed=55)
    readings = Runtime.open(bundle, threads=1).read(images)
    assert readings.logits.shape == (50, 2)
    with torch.no_grad():
        wanted = network()(torch.from_numpy(images)).numpy()[:, 0]
    gap = (readings.logits[:, 1] - readings.logits[:, 0]).astype(np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-gap)), wanted, atol=1e-4)
    np.savez(tmp_path / "data.npz", images=images)
    lines = [json.loads(line) for line in score_lines(bundle.path, tmp_path / "data.npz", device="cpu", threads=1)]
    named = np.asarray([line["prediction"] for line in lines])
    np.testing.assert_array_equal(named, wanted > 0.5)
    assert (named == labels).mean() > 0.9


def test_both_classes_have_a_gradient_that_detectors_can_read(bundle: Bundle) -> None:
    report = json.loads((bundle.path / "report.json").read_text("utf-8"))
    assert all(row["success"]["count"] for row in report["attacks"])
    assert all(row["served"]["auroc"]["value"] > 0.7 for row in report["attacks"])


def test_the_answer_passes_as_it_came_and_agrees(bundle: Bundle, model: Path) -> None:
    """One number an item reaches the client, byte for byte, and the guard names the class that it names."""
    images, _ = data(80, seed=56)

    async def send() -> tuple[list[Answered], list[Answered], dict[str, float]]:
        served = ServedModel(model, name=NAME, version="", threads=1)
        async with (
            model_serving(served, "127.0.0.1:0") as upstream,
            running(config_for(bundle.path, upstream), log=Log("info", io.StringIO())) as guard,
            calling(upstream) as direct,
            calling(guard.address) as client,
        ):
            await until(lambda: guard.readiness.because is None, lambda: str(guard.readiness.because))
            plain = [await direct.infer(image[None], name=NAME) for image in images]
            seen = [await client.infer(image[None], name=NAME) for image in images]
            names = ("guard_upstream_compared_items_total", "guard_upstream_disagreement_items_total")
            return plain, seen, {name: await metric_of(guard.metrics_address, name) for name in names}

    plain, seen, counted = asyncio.run(send())
    passed = [(a, b) for a, b in zip(plain, seen, strict=True) if b.ok]
    assert len(passed) > 60
    for bare, through in passed:
        assert bare.body == through.body
        assert list(ModelInferResponse.FromString(through.body).outputs[0].shape) == [1, 1]
    named = [prediction(through.body, bundle.manifest.model.output, 1) for _, through in passed]
    assert {int(found[0]) for found in named if found is not None} == {0, 1}
    assert counted["guard_upstream_compared_items_total"] == len(passed)
    assert counted["guard_upstream_disagreement_items_total"] == 0
