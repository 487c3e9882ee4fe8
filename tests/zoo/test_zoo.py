"""Architectures of image classifiers, from both of torch's exporters: they open, and answer and differentiate alike."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.open_model import Source, open_model
from tests.onnx_files import quiet
from tests.zoo.entries import ALIKE, entries
from tests.zoo.zoo import BUILDERS, SHAPE, build

# How a file was made: for one item, for any number, from an example whose memory is channels last, for NHWC inputs.
FORMS = ("fixed 1", "dynamic", "channels last", "NHWC")
STRIDED = (
    "squeezenet",
    "densenet",
    "resnet",
    "regnet",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet",
    "convnext",
    "swin",
)
# What the older exporter writes in another way: If, ScatterND, recurrent layers whole, activations in their parts.
OLDER = ("googlenet", "resnet", "mobilenet_v3", "shufflenet", "swin", "lstm", "gru", "elman", "convolutions_1d")
LIMIT = 1e-5  # relative L2 an item


class FromNHWC(nn.Module):
    """A network behind the transposition that channels-last inputs take."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.permute(0, 3, 1, 2))
        return logits


def exported(network: nn.Module, file: Path, exporter: str, form: str) -> Path:
    example = torch.rand(1 if form == "fixed 1" else 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    if form == "channels last":
        example = example.contiguous(memory_format=torch.channels_last)
    if form == "NHWC":
        example, network = example.permute(0, 2, 3, 1).contiguous(), FromNHWC(network).eval()
    names = {"input_names": ["input"], "output_names": ["logits"], "verbose": False}
    free = form != "fixed 1"
    with quiet():
        if exporter == "legacy":
            axes = {"input": {0: "item"}, "logits": {0: "item"}} if free else None
            torch.onnx.export(network, (example,), str(file), dynamo=False, dynamic_axes=axes, **names)
        else:
            shapes = ({0: torch.export.Dim("item")},) if free else None
            torch.onnx.export(network, (example,), str(file), dynamo=True, dynamic_shapes=shapes, **names)
    return file


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max())


def check(name: str, exporter: str, form: str, folder: Path) -> None:
    network = build(name)
    file = exported(network, folder / "m.onnx", exporter, form)
    classifier = open_model(Source(str(file), SHAPE))
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (wanted,) = torch.autograd.grad(network(images).amax(dim=1).sum(), images)
    logits, gradient = with_gradient(classifier.graph, seed=top_class)(images.detach())
    wire = images.detach().permute(0, 2, 3, 1) if form == "NHWC" else images.detach()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    step = 1 if form == "fixed 1" else len(wire)
    answers = [session.run(None, {"input": part.contiguous().numpy()})[0] for part in wire.split(step)]
    assert relative(logits, torch.cat([torch.from_numpy(answer) for answer in answers])) < LIMIT
    assert relative(gradient, wanted) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_an_architecture_from_the_default_exporter(name: str, tmp_path: Path) -> None:
    """Each in one form; in which a strided view stands, where there is one."""
    place = list(BUILDERS).index(name)
    form = FORMS[2 + place % 2] if name in STRIDED else FORMS[place % 4]
    check(name, "default", form, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OLDER)
def test_an_architecture_from_the_older_exporter(name: str, tmp_path: Path) -> None:
    check(name, "legacy", FORMS[(list(BUILDERS).index(name) + 1) % 4], tmp_path)


@pytest.fixture(autouse=True)
def quiet_torch() -> None:
    """torch prints the traceback of an operator that does not fit, which is one line of ours."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


def test_of_what_is_alike_one_is_trained() -> None:
    known = entries()
    assert all(known[sibling].is_trained and not known[name].is_trained for name, sibling in ALIKE.items())
