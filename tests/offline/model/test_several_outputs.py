"""One of several outputs is guarded: by its key or place, or because only one can be a prediction."""

from __future__ import annotations

import io
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from guard.errors import ModelError
from guard.offline.model.open_model import Source, open_model
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.progress import Stages
from tests.offline import tiny

SHAPE = tiny.SHAPE


@dataclass
class Heads:
    """What a model returns that has a second opinion; `extra` is seldom there."""

    main: Tensor
    aside: Tensor
    extra: Tensor | None = None


Pair = namedtuple("Pair", ["main", "aside"])


class Forked(nn.Module):
    """The tiny network; `form` says how it returns its logits and three times them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.form = tiny.image_model(), form

    def forward(self, images: Tensor) -> Any:
        logits = self.inner(images)
        match self.form:
            case "tuple":
                return logits, logits * 3
            case "dictionary":
                return {"main": logits, "aside": {"more": logits * 3}}
            case "dataclass":
                return Heads(logits, logits * 3)
            case "named":
                return Pair(logits, logits * 3)
            case "maps beside":
                return {"maps": images * 2, "named": logits.argmax(dim=1), "scores": logits}
            case other:
                raise AssertionError(other)


def as_tuple() -> nn.Module:
    return Forked("tuple").eval()


def as_dictionary() -> nn.Module:
    return Forked("dictionary").eval()


def as_dataclass() -> nn.Module:
    return Forked("dataclass").eval()


def as_named() -> nn.Module:
    return Forked("named").eval()


def maps_beside() -> nn.Module:
    return Forked("maps beside").eval()


WAYS = {  # factory -> the way to the logits, and to three times them
    "as_tuple": ("0", "1"),
    "as_dictionary": ("main", "aside.more"),
    "as_dataclass": ("main", "aside"),
    "as_named": ("main", "aside"),
}


def given(factory: str, kind: str, folder: Path) -> str:
    if kind == "module":
        return f"{__name__}:{factory}"
    shapes = ({0: torch.export.Dim("item")},)
    program = torch.export.export(globals()[factory](), (torch.zeros(2, *SHAPE),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "m.pt2")
    return str(folder / "m.pt2")


@pytest.mark.parametrize(
    ("factory", "kind"), [*((factory, "module") for factory in WAYS), ("as_tuple", "pt2"), ("as_dictionary", "pt2")]
)
def test_an_output_is_chosen_by_the_way_to_it(factory: str, kind: str, tmp_path: Path) -> None:
    images, inner = torch.from_numpy(tiny.data(5, seed=71)[0]), tiny.image_model()
    model = given(factory, kind, tmp_path)
    with torch.no_grad():
        expected = inner(images)
    for way, factor in zip(WAYS[factory], (1, 3), strict=True):
        for name, wire in ((way, way), (f"OUTPUT__1={way}", "OUTPUT__1")):
            opened = open_model(Source(model, SHAPE, output_name=name))
            assert opened.spec.output.name == wire
            torch.testing.assert_close(opened(images), expected * factor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("factory", "name", "words"),
    [
        ("as_tuple", None, r"gives 2 outputs \(0 \[item, 3\], 1 \[item, 3\]\).*--output-name, and WIRE=NAME"),
        ("as_dictionary", None, r"main \[item, 3\], aside\.more \[item, 3\]"),
        ("as_dataclass", "logits", r"no output 'logits'; --output-name can be: main \[item, 3\], aside \[item, 3\]"),
        ("as_tuple", "scores=2", "no output '2'"),
    ],
)
def test_a_choice_that_is_open_or_none_says_what_there_is(factory: str, name: str | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        open_model(Source(f"{__name__}:{factory}", SHAPE, output_name=name))


def test_the_only_one_that_can_hold_scores_needs_no_name() -> None:
    """Feature maps and class numbers are beside it; its key is its name on the wire."""
    assert open_model(Source(f"{__name__}:maps_beside", SHAPE)).spec.output.name == "scores"


def test_a_training_is_reopened_with_the_output_that_it_was_for(tmp_path: Path) -> None:
    """The bundle keeps the name on the wire, its work directory the way to it in the model."""
    raw = {**tiny.RECIPE, "detector": tiny.RECIPE["detector"][:2], "repair": []}
    way = {"model": f"{__name__}:as_dictionary", "output_name": "OUTPUT__1=aside.more"}
    bundle = train(
        tiny.job(tmp_path, recipe=tiny.parse(raw, "two detectors"), **way), Stages(Console(file=io.StringIO()))
    )
    assert bundle.manifest.model.output.name == "OUTPUT__1"
    assert Work.beside(bundle).subject(bundle).classifier.spec == bundle.manifest.model
