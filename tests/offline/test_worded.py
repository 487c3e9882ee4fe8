"""A model of several outputs whose labels are words is learned from words, and compared on any output of them."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import Tensor, nn

from guard.bundle import Bundle
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from guard.scoring import score_lines
from guard.serve.grpc.wire.inference_pb2 import ModelInferResponse
from guard.serve.log import Log
from guard.serve.model_server import ServedModel
from guard.serve.model_server import serving as model_serving
from guard.serve.server import running
from guard.summary import summarise
from tests.offline import tiny
from tests.onnx_files import quiet
from tests.serve.guarded import Answered, calling, config_for, infer_request, metric_of, until

NAME, NAMES = "worded", ("cat", "ant", "bee")


class Embedding(nn.Module):
    """The tiny perceptron, which gives its hidden layer too, before the probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = tiny.vector_model()

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.layers, nn.Sequential)
        hidden = self.layers[:-1](vectors)
        return hidden, self.layers[-1](hidden).softmax(dim=1)


def write_worded(file: Path) -> Path:
    """A file with the outputs `label` (text), `hidden` and `probabilities`, in this order."""
    names, axes = ["hidden", "probabilities"], {name: {0: "item"} for name in ("input", "hidden", "probabilities")}
    with quiet():
        torch.onnx.export(
            Embedding().eval(),
            (torch.zeros(2, tiny.FEATURES),),
            str(file),
            dynamo=False,
            input_names=["input"],
            output_names=names,
            dynamic_axes=axes,
        )
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(NAMES, dtype=object), "classes"))
    model.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0))
    model.graph.node.append(helper.make_node("Gather", ["classes", "best"], ["label"], axis=0))
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.STRING, ["item"]))
    onnx.save(model, file)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_worded(tmp_path_factory.mktemp("worded") / "model.onnx")


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    vectors, labels = tiny.vectors(640, seed=7)
    np.savez(model.with_name("data.npz"), images=vectors, labels=np.asarray(NAMES)[labels])
    raw = {**tiny.RECIPE, "detector": tiny.RECIPE["detector"][:2], "repair": []}
    recipe = tiny.parse(raw, "tiny vectors")
    settings = tiny.job(
        model.parent, model=str(model), serves=NAME, output="probabilities", output_name="probabilities", recipe=recipe
    )
    return train(settings, Stages(Console(file=io.StringIO())))


def test_the_bundle_has_the_models_names_in_its_order(bundle: Bundle) -> None:
    output = bundle.manifest.model.output
    assert (output.name, output.kind, output.labels) == ("probabilities", "probabilities", NAMES)
    assert "classes     0 cat  1 ant  2 bee" in summarise(bundle)
    assert Work.beside(bundle).subject(bundle).classifier.spec == bundle.manifest.model


def test_labels_in_words_are_evaluated_and_scored(bundle: Bundle, tmp_path: Path) -> None:
    vectors, labels = tiny.vectors(40, seed=55)
    np.savez(tmp_path / "data.npz", images=vectors, labels=np.asarray(NAMES)[labels])
    held_out, _ = Work.beside(bundle).held_out(bundle, tmp_path / "data.npz")
    assert sorted(held_out.labels.tolist()) == sorted(labels.tolist())
    lines = [json.loads(line) for line in score_lines(bundle.path, tmp_path / "data.npz", device="cpu", threads=1)]
    assert np.mean([line["prediction"] == label for line, label in zip(lines, labels, strict=True)]) > 0.9


@pytest.mark.parametrize("form", ["raw", "typed"])
@pytest.mark.parametrize("asked", [[], ["probabilities", "hidden"], ["label"]], ids=["all", "two", "label"])
def test_bundle_and_upstream_are_compared_on_whatever_output_shows_the_class(
    bundle: Bundle, model: Path, asked: list[str], form: str
) -> None:
    vectors, _ = tiny.vectors(30, seed=56)

    async def send() -> tuple[list[Answered], dict[str, float]]:
        async with (
            model_serving(ServedModel(model, name=NAME, version="", threads=1), "127.0.0.1:0") as upstream,
            running(config_for(bundle.path, upstream), log=Log("info", io.StringIO())) as guard,
            calling(guard.address) as client,
        ):
            await until(lambda: guard.readiness.because is None, lambda: str(guard.readiness.because))
            answers = []
            for vector in vectors:
                request = infer_request(vector[None], name=NAME, form=form)
                for output in asked:
                    request.outputs.add(name=output)
                answers.append(await client.call("ModelInfer", request))
            names = ("guard_upstream_compared_items_total", "guard_upstream_disagreement_items_total")
            return answers, {name: await metric_of(guard.metrics_address, name) for name in names}

    answers, counted = asyncio.run(send())
    passed = [ModelInferResponse.FromString(answer.body) for answer in answers if answer.ok]
    assert len(passed) > 20
    assert [output.name for output in passed[0].outputs] == (asked or ["label", "hidden", "probabilities"])
    assert counted["guard_upstream_compared_items_total"] == len(passed)
    assert counted["guard_upstream_disagreement_items_total"] == 0


def test_without_a_name_the_outputs_are_listed(model: Path, tmp_path: Path) -> None:
    from guard.errors import ModelError
    from guard.offline.model.open_model import Source, open_model

    with pytest.raises(
        ModelError, match=r"3 outputs \(label \[item\], hidden \[item, 16\], probabilities \[item, 3\]\)"
    ):
        open_model(Source(str(model), (tiny.FEATURES,)))
