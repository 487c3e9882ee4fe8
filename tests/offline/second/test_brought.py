"""Second networks that are brought: adapted inside the program, and refused in words where they cannot be asked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from guard.errors import ConfigError, GuardError, ModelError
from guard.offline.data.dataset import Dataset
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.second import SecondLogits
from guard.offline.evidence.onnx_gather import CompiledGather
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import parse
from guard.offline.model.classifier import Classifier
from guard.offline.model.declared_input import DeclaredInput
from guard.offline.second.adapted import Adapted, own_shape
from guard.offline.second.asked import find_asked
from guard.offline.second.brought import brought_networks
from guard.offline.second.same_model import is_same_model
from guard.option_values import second_boxes
from tests.offline import tiny
from tests.offline.evidence.test_gather import passes

ASKS: list[dict[str, Any]] = [
    {"name": "second_opinion", "program": "screen"},
    {"name": "second_entropy", "program": "screen"},
]
RECIPE = {**tiny.RECIPE, "repair": [], "detector": [tiny.RECIPE["detector"][0], *ASKS]}


class Changed(nn.Module):
    """The tiny second network as another owner keeps it: another size, range, number and order of classes."""

    def __init__(
        self, *, side: int = 8, scale: float = 1.0, channels: int = 1, order: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        super().__init__()
        self.inner = tiny.second_network("images").network
        self.side, self.scale, self.channels, self.order = side, scale, channels, list(order)

    def forward(self, items: Tensor) -> Tensor:
        grey = items.mean(dim=1, keepdim=True) / self.scale
        if self.side != 8:
            grey = nn.functional.avg_pool2d(grey, self.side // 8)
        logits: Tensor = self.inner(grey)
        return logits[:, self.order]


def exported(file: Path, **changes: Any) -> str:
    network = Changed(**changes).eval()
    example = torch.zeros(2, network.channels, network.side, network.side)
    free = ({0: torch.export.Dim("item")},)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=free), file)
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("second")


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Job, Classifier, Dataset]:
    job = tiny.job(folder, recipe=parse(RECIPE, "tiny"))
    return job, *open_job(job)


@cache
def told() -> list[str]:
    return []


def ask(opened: tuple[Job, Classifier, Dataset], **changes: Any) -> Any:
    job, classifier, data = opened
    told().clear()
    return find_asked(replace(job, **changes), classifier, data, lambda about, text: told().append(f"{about} {text}"))


def test_a_network_of_another_size_range_and_channels_is_asked_as_its_owner_would(
    folder: Path, opened: tuple[Job, Classifier, Dataset]
) -> None:
    """Compiled, it gives torch's logits; it costs one forward of its own and none of the model's."""
    _, classifier, data = opened
    model = exported(folder / "large.pt2", side=16, scale=255.0, channels=3)
    found = ask(opened, second=(model,), second_bounds=(((0.0,), (255.0,)),))
    (network,) = found.there
    assert "grey, given as RGB, resized from 8 x 8 to 16 x 16" in told()[0]
    assert "agrees with the model on" in told()[0]
    images = torch.from_numpy(data.images[:40])
    with torch.no_grad():
        larger = interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
        expected = tiny.second_network("images").network(nn.functional.avg_pool2d(larger, 2))
    gather = Gather(classifier, [SecondLogits(network), Logits()])
    compiled = CompiledGather(gather, images[:4].numpy())(images.numpy())
    near = 1e-3 * float(expected.std())
    torch.testing.assert_close(compiled[SecondLogits(network)], expected, rtol=1e-3, atol=near)
    assert (gather.rows, gather.backwards, gather.forwards) == (0, 0, network.forwards)
    assert 0 < network.forwards < 10
    assert passes([Logits(), SecondLogits(network)]) == [20]
    point = images.clone().requires_grad_()
    SecondLogits(network).read(point).sum().backward()
    assert bool((point.grad.flatten(1).abs().amax(dim=1) > 0).all()), "an attacker can follow it through the resizing"


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"order": (1, 2, 0)}, {}, "in another order.*wanted the model's own order"),
        ({"order": (0, 1)}, {}, "has 2 classes, the guarded model 3"),
        ({"order": (0, 0, 0)}, {}, "chance is .*wanted are at least 10% more"),
        ({"channels": 4}, {}, "pictures of 4 channels, the guarded model of 1"),
        ({"scale": 255.0}, {}, "chance is .*--second-range"),
    ],
    ids=["order", "count", "chance", "channels", "range"],
)
def test_a_network_that_cannot_be_asked_is_refused(
    folder: Path, opened: tuple[Job, Classifier, Dataset], changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    model = exported(folder / f"{len(words)}.pt2", **changes)
    with pytest.raises(ModelError, match=rf"--second .*{words}"):
        ask(opened, second=(model,), **settings)


def test_what_would_go_unused_or_agree_always_is_refused(folder: Path, opened: tuple[Job, Classifier, Dataset]) -> None:
    job, _, _ = opened
    model = exported(folder / "same.pt2")
    cases: list[tuple[dict[str, Any], type[GuardError], str]] = [
        ({"second": (model,), "recipe": tiny.recipe()}, ConfigError, "recipe tiny has no detector that asks"),
        ({"second": (job.model,)}, ModelError, "is the guarded model itself"),
        ({"second": (model, model)}, ConfigError, "given twice"),
        ({"second": (str(folder / "gone.onnx"),)}, ModelError, "does not exist"),
        ({"second": (model,), "second_bounds": (((0.0, 0.0), (1.0, 1.0)),)}, ConfigError, "tell of 2 channels"),
        ({"second": (model,), "second_bounds": (((0.0,), (1.0,)),) * 2}, ConfigError, "1 times --second, but 2 ranges"),
        ({"second_bounds": (((0.0,), (1.0,)),)}, ConfigError, "none was given"),
    ]
    for settings, error, words in cases:
        with pytest.raises(error, match=words):
            ask(opened, **settings)


class Reexported(nn.Module):
    """A network whose logits are another's, at another temperature and with something added to all of an item's."""

    def __init__(self, inner: nn.Module, *, noise: float = 0.0) -> None:
        super().__init__()
        self.inner, self.noise = inner, noise

    def forward(self, items: Tensor) -> Tensor:
        logits: Tensor = self.inner(items)
        return 2 * logits + items.flatten(1).mean(dim=1, keepdim=True) + self.noise * torch.sin(9 * logits)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_model_in_another_export_is_known_by_its_logits(
    opened: tuple[Job, Classifier, Dataset], classes: int
) -> None:
    """One that names the same classes all the same, but with other margins, is another network."""
    _, classifier, data = opened

    class Few(nn.Module):
        def forward(self, items: Tensor) -> Tensor:
            logits: Tensor = classifier.graph(items)
            return logits[:, :classes]

    graph: Any = Few()
    model = replace(classifier, graph=graph)
    assert is_same_model(Reexported(graph), model, data, 0)
    assert not is_same_model(Reexported(graph, noise=0.5), model, data, 0)
    assert not is_same_model(tiny.second_network("images").network, classifier, data, 0)


def test_the_model_in_another_export_is_refused(folder: Path, opened: tuple[Job, Classifier, Dataset]) -> None:
    file, example = folder / "again.pt2", torch.zeros(2, *tiny.SHAPE)
    free = ({0: torch.export.Dim("item")},)
    torch.export.save(torch.export.export(Reexported(tiny.image_model()), (example,), dynamic_shapes=free), file)
    with pytest.raises(ModelError, match="gives the logits of the guarded model"):
        ask(opened, second=(str(file),))


def test_names_in_another_order_are_refused_before_anything_is_asked(
    folder: Path, opened: tuple[Job, Classifier, Dataset]
) -> None:
    from guard.offline.second.brought import OpenedNetwork, check_classes

    _, classifier, _ = opened
    output = replace(classifier.spec.output, labels=("cat", "dog", "emu"))
    named = replace(classifier, spec=replace(classifier.spec, output=output))
    (brought,) = brought_networks([str(folder / "any.pt2")], [])
    adapted = Adapted(nn.Identity(), tiny.SHAPE, tiny.SHAPE)
    check_classes(brought, OpenedNetwork(adapted, "", "", 3, ("cat", "dog", "emu")), named)
    check_classes(brought, OpenedNetwork(adapted, "", "", 3, ()), named)
    for labels, words in ((("cat", "emu", "dog"), "class 1 is 'emu'.*in another"), (("cat", "dog", "elk"), "is 'elk'")):
        with pytest.raises(ModelError, match=words):
            check_classes(brought, OpenedNetwork(adapted, "", "", 3, labels), named)


def test_without_a_network_its_detectors_are_left_out_and_that_is_said(opened: tuple[Job, Classifier, Dataset]) -> None:
    found = ask(opened)
    assert [entry["name"] for entry in found.forecast.recipe.detectors] == ["mahalanobis"]
    assert "left out: second_opinion and second_entropy" in told()[0]
    assert "--second-data" in told()[0]
    alone = parse({**RECIPE, "detector": ASKS}, "alone")
    with pytest.raises(ConfigError, match="recipe alone has no detector but"):
        _ = ask(opened, recipe=alone).forecast


@pytest.mark.parametrize(
    ("item", "either", "given", "taken"),
    [
        ((3, 32, 32), True, (3, 32, 32), (3, 32, 32)),
        ((224, 224, 3), True, (3, 32, 32), (3, 224, 224)),
        ((1, None, None), True, (3, 32, 32), (1, 32, 32)),
        ((3, 16, 24), False, (1, 28, 28), (3, 16, 24)),
        (None, False, (3, 32, 32), (3, 32, 32)),
        ((None,), True, (30,), (30,)),
        ((31,), True, (30,), None),
        ((3, 32, 32), True, (30,), None),
        ((2, 32, 32), False, (3, 32, 32), None),
    ],
)
def test_the_items_that_a_network_takes(item: Any, either: bool, given: tuple[int, ...], taken: Any) -> None:  # noqa: FBT001
    if taken is None:
        with pytest.raises(ModelError, match=r"it takes .*the guarded model"):
            own_shape(DeclaredInput(item, either), given, "it")
    else:
        assert own_shape(DeclaredInput(item, either), given, "it") == taken


def test_pictures_are_made_grey_and_smaller_as_pictures_are() -> None:
    items = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    found = Adapted(nn.Identity(), (3, 20, 24), (1, 10, 8))(items)
    grey = (items * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    expected = interpolate(grey, size=(10, 8), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(found.mean(), grey.mean(), atol=1e-2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((["0,255"], ["0.5"], ["0.5"]), "give the one or the others"),
        ((None, ["0.5"], None), "1 times, --second-std 0 times"),
        ((["255,0"], None, None), "wanted LOW,HIGH"),
        ((["0"], None, None), "wanted LOW,HIGH"),
        ((None, ["0.5,a"], ["1,1"]), "--second-mean '0.5,a'"),
        ((None, ["0.5"], ["0"]), "--second-std 0: wanted"),
    ],
)
def test_ranges_on_the_command_line(given: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        second_boxes(*given)
    assert second_boxes(["0,255", "-1,1"], None, None) == (((0.0,), (255.0,)), ((-1.0,), (1.0,)))
    assert second_boxes(None, ["0.5"], ["0.25"]) == (((-2.0,), (2.0,)),)
    assert second_boxes(None, None, None) == ()
