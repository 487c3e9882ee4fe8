"""A torch program of half precision opens as the float32 network of its weights, and is compared with itself."""

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


class Casting(nn.Module):
    """A network of half precision that takes and gives float32, with a constant and a fresh tensor of its own."""

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
    """Factories of the vector network in both half precisions, of which the second casts."""
    for name, kind in HALVES.items():
        model = copy.deepcopy(tiny.vector_model()).to(kind)
        monkeypatch.setattr(tiny, name, lambda model=model: model, raising=False)
        monkeypatch.setattr(tiny, f"cast_{name}", lambda m=model, kind=kind: Casting(m, kind), raising=False)


def source(form: str, kind: str, folder: Path) -> str:
    if form == "module":
        return f"{tiny.__name__}:{kind}"
    if form == "module that casts":
        return f"{tiny.__name__}:cast_{kind}"
    example = torch.zeros(2, tiny.FEATURES, dtype=HALVES[kind])
    shapes = ({0: torch.export.Dim("item")},)
    model = copy.deepcopy(tiny.vector_model()).to(HALVES[kind])
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), folder / "m.pt2")
    return str(folder / "m.pt2")


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("form", ["module", "module that casts", ".pt2"])
@pytest.mark.usefixtures("factories")
def test_a_program_of_half_precision(form: str, kind: str, tmp_path: Path) -> None:
    """Logits and gradients are the float32 network's; the program's own are near, and not the same."""
    classifier = open_model(Source(source(form, kind, tmp_path), (tiny.FEATURES,)))
    assert classifier.spec.input.datatype == ("FP16" if kind == "float16" and "casts" not in form else "FP32")
    images = tiny.vectors(128, seed=3)[0]
    float_model = copy.deepcopy(tiny.vector_model()).to(HALVES[kind]).float()
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
    assert 1e-5 < difference.largest < (0.05 if kind == "bfloat16" else 0.005)


def test_a_program_of_float32_is_what_is_served() -> None:
    assert tiny.vector_classifier().served is None
