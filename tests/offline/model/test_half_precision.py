"""A torch program of half or double precision opens as the float32 network of its weights, compared with itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guard.offline.model.gradient.input_gradient import top_class, with_gradient
from guard.offline.model.open_model import Source, open_model
from guard.offline.model.served import measure_difference
from tests.offline import tiny

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {**HALVES, "float64": torch.float64}
WIRE = {"float16": "FP16", "float64": "FP64"}


class Casting(nn.Module):
    """A network of another precision that takes and gives float32, with a constant and a fresh tensor of its own."""

    def __init__(self, model: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.shift = torch.ones(tiny.CLASSES, dtype=kind)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.kind)) + self.shift
        return (logits + torch.ones(tiny.CLASSES, dtype=self.kind)).float() - 2


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factories of the vector network in each other precision, of which the second casts."""
    for name, kind in KINDS.items():
        model = copy.deepcopy(tiny.vector_model()).to(kind)
        monkeypatch.setattr(tiny, name, lambda model=model: model, raising=False)
        monkeypatch.setattr(tiny, f"cast_{name}", lambda m=model, kind=kind: Casting(m, kind), raising=False)


def source(form: str, kind: str, folder: Path) -> str:
    if form == "module":
        return f"{tiny.__name__}:{kind}"
    if form == "module that casts":
        return f"{tiny.__name__}:cast_{kind}"
    example = torch.zeros(2, tiny.FEATURES, dtype=KINDS[kind])
    shapes = ({0: torch.export.Dim("item")},)
    model = copy.deepcopy(tiny.vector_model()).to(KINDS[kind])
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), folder / "m.pt2")
    return str(folder / "m.pt2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["module", "module that casts", ".pt2"])
@pytest.mark.usefixtures("factories")
def test_a_program_of_another_precision(form: str, kind: str, tmp_path: Path) -> None:
    """Logits and gradients are the float32 network's; the program's own are near, and not the same."""
    classifier = open_model(Source(source(form, kind, tmp_path), (tiny.FEATURES,)))
    assert classifier.spec.input.datatype == ("FP32" if "casts" in form else WIRE.get(kind, "FP32"))
    images = tiny.vectors(128, seed=3)[0]
    float_model = copy.deepcopy(tiny.vector_model()).to(KINDS[kind]).float()
    given = torch.from_numpy(images).requires_grad_()
    logits = float_model(given)
    (wanted,) = torch.autograd.grad(logits.amax(dim=1).sum(), given)
    found, gradient = with_gradient(classifier.graph, seed=top_class)(given.detach())
    torch.testing.assert_close(found, logits.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert classifier.served is not None
    difference = measure_difference(classifier.served, classifier, images, classifier.spec.input.box)
    assert difference.form == f"computes in {kind}"
    assert difference.changed <= 0.02
    assert difference.largest is not None
    if kind == "float64":
        assert difference.largest < 1e-5
        return
    assert 1e-5 < difference.largest < (0.05 if kind == "bfloat16" else 0.005)


@pytest.mark.parametrize("form", ["module", ".pt2"])
def test_images_in_double_precision(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(tiny.image_model()).double()
    monkeypatch.setattr(tiny, "double_images", lambda: model, raising=False)
    reference = f"{tiny.__name__}:double_images"
    if form == ".pt2":
        example = torch.zeros(2, *tiny.SHAPE, dtype=torch.float64)
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("item")},))
        torch.export.save(program, tmp_path / "m.pt2")
        reference = str(tmp_path / "m.pt2")
    classifier = open_model(Source(reference, tiny.SHAPE))
    assert classifier.spec.input.datatype == "FP64"
    images = tiny.data(64, seed=3)[0]
    with torch.no_grad():
        wanted = model(torch.from_numpy(images).double()).float()
        torch.testing.assert_close(classifier(torch.from_numpy(images)), wanted, rtol=1e-4, atol=1e-4)
    assert classifier.served is not None
    assert measure_difference(classifier.served, classifier, images, classifier.spec.input.box).changed == 0


def test_a_sum_in_double_precision_is_a_float32_networks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(tiny.FEATURES, tiny.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x).double() - x.double().mean(dim=1, keepdim=True)).float()

    monkeypatch.setattr(tiny, "summing", Summing, raising=False)
    classifier = open_model(Source(f"{tiny.__name__}:summing", (tiny.FEATURES,)))
    assert classifier.served is None
    assert classifier.spec.input.datatype == "FP32"


def test_a_program_of_float32_is_what_is_served() -> None:
    assert tiny.vector_classifier().served is None
