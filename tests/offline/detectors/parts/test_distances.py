"""Distances that keep their digits: single precision against differences taken in double, in torch and ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.offline.data.attacked import Attacked
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.kernel_density import KernelDensity
from guard.offline.detectors.lid import Lid
from guard.offline.detectors.mahalanobis import Mahalanobis
from guard.offline.detectors.parts.distances import AnchoredPoints, spread_anchors
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.model.onnx_export.export import lower
from guard.session import Session

TAP = Latent("tap")
CLASSES, FEATURES, ITEMS = 5, 24, 400
TOLERANCE = 1e-3  # relative


def latents(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Latents [item, feature] whose neighbours lie much closer to each other than their length, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (ITEMS,), generator=generator)
    noise = torch.randn(ITEMS, FEATURES, generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    values = {
        "an offset": 1e3 + 1e-2 * noise,
        "tight classes": 30 * centres[labels] + 1e-2 * noise,
        "both": 1e3 + 10 * centres[labels] + 1e-1 * noise,
        "a line": torch.rand(ITEMS, 1, generator=generator) * torch.ones(FEATURES),
    }
    return values[kind], labels


KINDS = ("an offset", "tight classes", "both", "a line")
BY_KIND = pytest.mark.parametrize("kind", KINDS)


@BY_KIND
def test_squared_distances_are_those_of_differences(kind: str) -> None:
    points, probes = latents(kind, seed=1)[0], latents(kind, seed=2)[0]
    middle = points.mean(dim=0)
    near = AnchoredPoints(points - middle, spread_anchors(points - middle, 16))
    items = probes - middle
    exact = (items.double()[:, None] - (points - middle).double()).square().sum(dim=2)
    found = near(items, near.nearest_anchor(items)).whole.double()
    nearest = exact.argsort(dim=1)[:, 1:20]
    error = (found.gather(1, nearest) / exact.gather(1, nearest) - 1).abs()
    assert float(error.quantile(0.99)) < (2 * TOLERANCE if kind == "a line" else TOLERANCE)
    sorted_distances = near.nearest_distances(items, 20).sort(dim=1).values.double()
    torch.testing.assert_close(sorted_distances, exact.sqrt().sort(dim=1).values[:, :20], rtol=1e-4, atol=0)


def test_any_anchor_gives_the_same_distances() -> None:
    points, items = (latents("tight classes", seed)[0] / 30 for seed in (1, 2))
    near = AnchoredPoints(points.double(), points[:7].double())
    exact = (items.double()[:, None] - points.double()).square().sum(dim=2)
    for anchor in range(7):
        found = near(items.double(), torch.full((ITEMS,), anchor)).whole
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_anchors_reach_every_cluster() -> None:
    points, labels = latents("tight classes", seed=1)
    anchors = spread_anchors(points, CLASSES)
    assert sorted(labels[(points == anchor).all(dim=1)][0].item() for anchor in anchors) == list(range(CLASSES))
    assert len(spread_anchors(points[:3], 16)) == 3


DETECTORS: tuple[Detector, ...] = (
    Lid((TAP,)),
    KernelDensity(TAP),
    Mahalanobis((TAP,)),
    Mahalanobis((TAP,), centre="nearest"),
)


WIDTH = FEATURES + CLASSES  # of an item's latent and logits


class Alone(nn.Module):
    """A head over its latent and logits, as a program has it."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, values: Tensor) -> Tensor:
        latent, logits = values.split((FEATURES, CLASSES), dim=1)
        return self.head({TAP: latent, Logits(): logits})[:, None]


class Together(nn.Module):
    """Heads beside each other: each kind's read the latents and logits of that kind."""

    def __init__(self, heads: Mapping[tuple[Detector, str], Alone]) -> None:
        super().__init__()
        self.places = [KINDS.index(kind) for _, kind in heads]
        self.heads = nn.ModuleList(heads.values())

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        parts = values.split(WIDTH, dim=1)
        return tuple(head(parts[place]) for head, place in zip(self.heads, self.places, strict=True))


def fitted(detector: Detector, kind: str) -> Head:
    values, labels = latents(kind, seed=1)
    clean = {TAP: values, Logits(): 9.0 * nn.functional.one_hot(labels, CLASSES).float()}
    none = {need: value[:0] for need, value in clean.items()}
    return detector.fit(Examples(clean, labels, none, Attacked(none, ()), seed=0))


def probes(kind: str) -> Tensor:
    """Other items of a kind: latents and logits [item, feature]."""
    values, labels = latents(kind, seed=2)
    return torch.cat([values, 9.0 * nn.functional.one_hot(labels, CLASSES).float()], dim=1)


@pytest.fixture(scope="module")
def heads() -> dict[tuple[Detector, str], Alone]:
    return {(one, kind): Alone(fitted(one, kind)).eval() for one in DETECTORS for kind in KINDS}


@pytest.fixture(scope="module")
def served(
    heads: dict[tuple[Detector, str], Alone], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[Detector, str], NDArray[Any]]:
    """Each head's scores of the probes of its kind, from one exported file."""
    file = tmp_path_factory.mktemp("heads") / "heads.onnx"
    wire = torch.cat([probes(kind) for kind in KINDS], dim=1)
    names = [f"score_{place}" for place in range(len(heads))]
    file.write_bytes(lower(Together(heads).eval(), wire, input_name="wire", output_names=names).SerializeToString())
    return dict(zip(heads, Session(file, device="cpu", threads=1).run(names, wire.numpy()), strict=True))


@BY_KIND
@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_a_score_is_what_double_precision_gives(
    detector: Detector,
    kind: str,
    heads: dict[tuple[Detector, str], Alone],
    served: dict[tuple[Detector, str], NDArray[Any]],
) -> None:
    head, wire = heads[detector, kind], probes(kind)
    exact = copy.deepcopy(head).double()(wire.double()).numpy()
    for found in (head(wire).numpy(), served[detector, kind]):
        assert np.abs(found - exact).max() < TOLERANCE * max(exact.std(), np.abs(exact).min())


def test_an_item_met_again_is_no_neighbour_of_itself() -> None:
    """Also where references lie on top of each other: all that counts is the same in every precision."""
    values, labels = latents("an offset", seed=1)
    values[:60] = values[0]
    clean = {TAP: values, Logits(): nn.functional.one_hot(labels, CLASSES).float()}
    none = {need: value[:0] for need, value in clean.items()}
    head = Lid((TAP,)).fit(Examples(clean, labels, none, Attacked(none, ()), seed=0))
    found = head(clean).double()
    exact = copy.deepcopy(head).double()({need: value.double() for need, value in clean.items()})
    assert bool(found.isfinite().all())
    assert float((found - exact).abs().max()) < TOLERANCE * float(exact.std())
