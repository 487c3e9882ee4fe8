"""Kinds of input: each states what applies, and every listed part runs on each kind that it states."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.axes import BY_COUNT
from guard.errors import ConfigError, DataError
from guard.offline.attacks.attack import learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.map_only import MapOnly
from guard.offline.attacks.methods.spatial import Spatial
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.table import ATTACKS, build_attack, settings_of
from guard.offline.data.grid import on_grid
from guard.offline.data.input_kind import KINDS, InputKind, in_words, kind_like, kind_of, kinds_of
from guard.offline.data.kind_names import EVERY_KIND, KindName
from guard.offline.data.shift import shifted
from guard.offline.denoisers.table import DENOISERS
from guard.offline.detectors.table import DETECTORS
from guard.offline.job.recipe import parse
from tests.offline import tiny
from tests.offline.denoisers.prepared import prepared
from tests.side import reach

pytestmark = pytest.mark.slow

reach("zoo")  # foolbox and pyautoattack: attacks of the table are run by them

SHAPES: dict[KindName, tuple[int, ...]] = {"images": (2, 6, 6), "series": (2, 12), "vectors": (9,), "tabular": (9,)}
FEW: dict[str, Any] = {
    "budget": 0.25, "steps": 3, "searches": 2, "queries": 60, "evaluations": 10, "epochs": 1, "rounds": 2, "path": 2,
    "samples": 4, "iterations": 2, "learning_items": 4, "batch": 4, "substitute_epochs": 1,
}  # fmt: skip

OF_PLACES = ("feature_denoising",)  # they smooth over neighbours, of which vectors have none


def kind_named(name: str) -> InputKind:
    return next(kind for kind in KINDS if kind.name == name)


def quick(name: str) -> Any:
    """An attack of the table, as short as it goes."""
    known = settings_of(name)
    return build_attack(name, {key: value for key, value in FEW.items() if key in known})


def problem(kind: str) -> tuple[TorchModel, Tensor, Tensor]:
    """A small network, a few items of a kind, and its own answers."""
    inputs = torch.rand(4, *SHAPES[kind], generator=torch.Generator().manual_seed(1))  # type: ignore[index]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(inputs[0].numel(), 12), nn.Tanh(), nn.Linear(12, 3)]
        model = TorchModel(nn.Sequential(*layers).eval())
    with torch.no_grad():
        return model, inputs, model(inputs).argmax(dim=1)


def test_every_name_is_one_kind_and_every_number_of_axes_is_known() -> None:
    assert {kind.name for kind in KINDS} == EVERY_KIND
    assert {kind.axes for kind in KINDS} == set(BY_COUNT.values())
    for name, shape in SHAPES.items():
        found = kind_of(shape, features="some" if name == "tabular" else None)
        assert found.name == name
        assert found.features == ("some" if name == "tabular" else None)
        assert bool(found.shifts) != bool(found.shift_note)
        assert found.drawing == "none" or found.drawable_channels
        assert found.drawing_note
    with pytest.raises(DataError, match=r"\[1, 2, 3, 4\], of 4 axes; wanted .*series \[channel, time\]"):
        kind_of((1, 2, 3, 4))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_fine_structure_and_shifts_are_of_the_items_shape(kind: InputKind) -> None:
    items = torch.rand(3, *SHAPES[kind.name])
    assert kind.residual(items).shape == items.shape
    assert kind_like(items).axes == kind.axes
    if kind.axes.places:
        assert bool(kind.residual(torch.full_like(items, 0.3)).abs().max() < 1e-6), "what is flat has none"
    clean = (np.rint(items.numpy() * 255) / np.float32(255)).astype(np.float32)
    for shift in (*kind.shifts, *kind.negatives):
        moved = shifted(shift, clean, 255)
        assert moved is None or (moved.shape == clean.shape and on_grid(moved, 255))
        assert moved is None or 0 < np.abs(moved - clean).mean() < 0.35, shift.name
        assert moved is None or np.array_equal(moved, shifted(shift, clean, 255))  # type: ignore[arg-type]


def stated() -> list[tuple[str, str]]:
    return [(name, kind) for name in ATTACKS for kind in get_args(KindName) if kind in kinds_of(quick(name))]


@pytest.mark.parametrize(("name", "kind"), stated())
def test_an_attack_runs_on_each_kind_that_it_states(name: str, kind: str) -> None:
    attack, (model, inputs, labels) = quick(name), problem(kind)
    assert kind_named(kind).refusal(attack) is None
    before = inputs.clone()
    if learns(attack):
        attack = Informed(attack, attack.learn(model, inputs, labels, torch.Generator().manual_seed(2)))
    attacked = attack(model, inputs, labels, torch.Generator().manual_seed(3))
    assert attacked.shape == inputs.shape
    assert torch.equal(inputs, before)
    assert bool(((attacked >= 0) & (attacked <= 1)).all())
    if attack.norm in ("linf", "l2", "l1") and attack.budget is not None:
        assert bool((sizes(attacked - inputs, attack.norm) <= attack.budget + 1e-6).all())


def test_a_map_moves_along_time() -> None:
    model, inputs, labels = problem("series")
    attack = MapOnly(budget=0.1, steps=3, aim="centre")
    assert attack(model, inputs, labels, torch.Generator()).shape == inputs.shape


@pytest.mark.parametrize("name", [*DENOISERS])
def test_a_denoiser_runs_on_each_kind_that_it_states(name: str) -> None:
    kinds = kinds_of(DENOISERS[name]())
    assert kinds <= EVERY_KIND
    for kind in kinds:
        denoiser = prepared(name, SHAPES[kind])
        items = 0.4 + 0.04 * torch.rand(3, *SHAPES[kind])  # non-local means keep what differs more
        cleaned = denoiser(items)
        assert cleaned.shape == items.shape
        assert not torch.equal(cleaned, items)


def test_a_median_of_series_looks_along_time_alone() -> None:
    items = torch.zeros(1, 2, 9)
    items[0, 0, 4], items[0, 1, :] = 1.0, 0.7
    cleaned = DENOISERS["median"](window=3)(items)
    assert bool((cleaned[0, 0] == 0).all()), "a lone value goes"
    assert bool((cleaned[0, 1] == 0.7).all()), "the other channel stays"


def test_every_detector_states_the_kinds_on_which_its_laws_are_tested() -> None:
    """The laws themselves are in `detectors/`, over all the kinds that have a classifier there."""
    taps = [tap.name for tap in tiny.series_classifier().taps]
    for name in DETECTORS:
        wanted = {"images", "series"} if name in OF_PLACES else {"images", "series", "vectors"}
        assert wanted <= kinds_of(DETECTORS[name](taps)), name


def test_what_does_not_apply_is_said_and_left_out() -> None:
    raw = {
        **tiny.RECIPE,
        "attack": [*tiny.RECIPE["attack"], {"name": "spatial"}],
        "left_out": [{"name": "square", "budget": 0.1}],
    }
    taps = [tap.name for tap in tiny.series_classifier().taps]
    recipe = parse(raw, "mine")
    found = recipe.fitting(kind_of((2, 12)), taps)
    assert [attack.name for attack in found.attacks] == ["pgd", "fgsm"]
    assert found.left_out == ()
    assert found.detectors == recipe.detectors
    assert found.skipped == (
        f"attack {Spatial()!r}: it takes images alone, and the inputs are series",
        f"attack {recipe.left_out[0]!r}: it takes images alone, and the inputs are series",
    )
    assert found.fitting(kind_of((2, 12)), taps) == found
    assert recipe.fitting(kind_of((1, 8, 8)), taps) == recipe
    only = parse({**raw, "detector": [entry for entry in raw["detector"] if "squeezers" in entry]}, "mine")
    with pytest.raises(ConfigError, match=r"no detector for tabular: .*takes images, series and vectors"):
        only.fitting(kind_of((9,), features="some"), taps)


def test_kinds_are_said_in_words() -> None:
    assert in_words(frozenset({"images"})) == "images alone"
    assert in_words(frozenset({"series", "images", "vectors"})) == "images, series and vectors"
