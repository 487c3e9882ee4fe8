"""What holds for every head: a detector listed in the table is tested by being listed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields, make_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.denoisers import table as denoiser_table
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Head, learns
from guard.offline.detectors.table import DETECTORS, build_detector
from guard.offline.evidence.kinds import gradients, plain, variants
from guard.offline.evidence.kinds.dropout import DropoutLogits
from guard.offline.evidence.kinds.gradients import NoisedGradients
from guard.offline.evidence.kinds.latent_filter import FilteredLogits
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.kinds.reconstruction import ReconstructedLogits, Reconstruction
from guard.offline.evidence.kinds.second import SecondLogits
from guard.offline.evidence.kinds.variants import DenoisedLogits, NoisyLogits, SteeredLogits
from guard.offline.evidence.needs import Evidence, take
from guard.offline.job.second_settings import ASKING
from guard.offline.programs.program import Program
from guard.offline.programs.write_programs import compile_programs
from guard.session import Session
from tests.offline.detectors.fitting import ITEMS, LISTED, NAMES, Fitted, Kind, auroc, fitted
from tests.offline.rough_steps import faults


def reads_layers_alone(name: str) -> bool:
    """Whether a detector reads the model's own outputs and layers and nothing else, whatever the inputs are."""
    detector = DETECTORS[name](["a", "b"])
    if learns(detector) or name in ASKING:  # then these are not all of its needs
        return False
    return all(isinstance(need, Latent | Logits) for need in detector.needs)


# What reads layers alone is the same program for every kind of input: it is written for images.
COMPILED = [(name, kind) for name, kind in LISTED if kind == "images" or not reads_layers_alone(name)]
BY_PART = pytest.mark.parametrize(("name", "kind"), LISTED)
BY_NAME = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], dict[str, NDArray[Any]]]:
    """Scores [item] of each detector on the held-out items, as ONNX Runtime gives them."""
    found: dict[Kind, dict[str, NDArray[Any]]] = {}

    def scores(kind: Kind) -> dict[str, NDArray[Any]]:
        if kind not in found:
            have, folder = fitted(kind), tmp_path_factory.mktemp(kind)
            program = Program(have.classifier, [head for name, head in have.heads.items() if (name, kind) in COMPILED])
            wire = have.inputs.numpy()
            for name, content in compile_programs({"all": program}, {}, wire).files.items():
                (folder / name).write_bytes(content)
            session = Session(folder / "all.onnx", device="cpu", threads=1)
            found[kind] = dict(zip(program.names, session.run(("scores",), wire)[0].T, strict=True))
        return found[kind]

    return scores


def score(have: Fitted, name: str, items: Evidence) -> Tensor:
    with torch.no_grad():
        return have.heads[name](items)


def gathered(have: Fitted, inputs: Tensor) -> Evidence:
    with torch.no_grad():
        found: Evidence = have.gather()(inputs)
    return found


@cache
def at_constant(kind: Kind, value: float) -> Evidence:
    """Evidence of three items that are one value throughout."""
    have = fitted(kind)
    return gathered(have, torch.full_like(have.inputs[:3], value))


@cache
def regathered(kind: Kind) -> Evidence:
    """Evidence of the held-out items as all detectors together ask for it, and not from the cache of training."""
    have = fitted(kind)
    return gathered(have, have.inputs)


def padded(items: Evidence, rows: int) -> Evidence:
    """The items followed by rows of zeros."""
    return {need: torch.cat([value, value.new_zeros(rows, *value.shape[1:])]) for need, value in items.items()}


@BY_PART
def test_an_item_does_not_depend_on_its_batch(name: str, kind: Kind) -> None:
    have = fitted(kind)
    whole = score(have, name, have.clean)
    assert whole.shape == (ITEMS,)
    assert whole.std() > 0, "it tells items apart"
    near = 1e-4 * float(whole.std())
    for size in (1, 7):
        parts = [score(have, name, take(have.clean, index)) for index in torch.arange(28).split(size)]
        torch.testing.assert_close(torch.cat(parts), whole[:28], rtol=1e-4, atol=near)
    torch.testing.assert_close(
        score(have, name, padded(take(have.clean, torch.arange(5)), 9))[:5], whole[:5], rtol=1e-4, atol=near
    )


@BY_PART
def test_order_in_is_order_out(name: str, kind: Kind) -> None:
    have = fitted(kind)
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0))
    whole = score(have, name, have.clean)
    shuffled = score(have, name, take(have.clean, order))
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-4, atol=1e-4 * float(whole.std()))


@BY_PART
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_finite_on_constant_inputs(name: str, kind: Kind, value: float) -> None:
    assert bool(score(fitted(kind), name, at_constant(kind, value)).isfinite().all())


@BY_PART
def test_restored_from_its_state(name: str, kind: Kind) -> None:
    have = fitted(kind)
    state = {key: value.clone() for key, value in have.heads[name].state_dict().items()}
    again = have.detectors[name].restore(state)
    with torch.no_grad():
        assert torch.equal(again(have.clean), score(have, name, have.clean))
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in state.items()
    }


@pytest.mark.parametrize(("name", "kind"), COMPILED)
def test_onnx_equals_torch(name: str, kind: Kind, compiled: Callable[[Kind], dict[str, NDArray[Any]]]) -> None:
    have = fitted(kind)
    expected = score(have, name, regathered(kind)).numpy()
    errors = np.sort(np.abs(compiled(kind)[name] - expected))
    sloped = any(need.backwards for need in have.detectors[name].needs)
    kept = errors[: ITEMS - ITEMS // 100] if sloped else errors  # one item in a hundred may lie on a kink
    assert np.linalg.norm(kept) / np.linalg.norm(expected) < 1e-4


@BY_PART
def test_fitting_is_deterministic_and_changes_nothing(name: str, kind: Kind) -> None:
    have = fitted(kind)
    before = {need: value.clone() for need, value in have.examples.clean.items()}
    state = torch.random.get_rng_state()
    again = have.detectors[name].fit(have.examples)
    assert torch.equal(torch.random.get_rng_state(), state), "global randomness is left alone"
    for need, value in have.examples.clean.items():
        assert torch.equal(value, before[need])
    with torch.no_grad():
        assert torch.equal(again(have.clean), score(have, name, have.clean))


@BY_PART
def test_it_reads_what_it_named_and_nothing_else(name: str, kind: Kind) -> None:
    have = fitted(kind)
    named = have.detectors[name].needs
    assert len(set(named)) == len(named) > 0
    score(have, name, {need: have.clean[need] for need in named})
    for left_out in named:
        with pytest.raises(KeyError):
            score(have, name, {need: value for need, value in have.clean.items() if need != left_out})


@BY_PART
def test_a_head_has_nothing_left_to_learn(name: str, kind: Kind) -> None:
    assert not any(parameter.requires_grad for parameter in fitted(kind).heads[name].parameters())
    assert isinstance(fitted(kind).heads[name], Head)


# Planted outliers: each is what its paper is about, and lands in the tail that the paper names.


def far_latents(have: Fitted) -> Evidence:
    """Latents ten clean standard deviations away from where clean ones are."""
    return {
        need: value + 10 * value.std(dim=0) if isinstance(need, Latent) else value for need, value in have.clean.items()
    }


def changed_mind(have: Fitted) -> Evidence:
    """Denoised, the model names another class, and is sure of it."""
    return {
        need: 9.0 * torch.roll(have.clean[Logits()], 1, dims=1) if isinstance(need, DenoisedLogits) else value
        for need, value in have.clean.items()
    }


def changed_when_filtered(have: Fitted) -> Evidence:
    """With smooth feature maps the model names another class, and is sure of it."""
    return {
        need: 9.0 * torch.roll(have.clean[Logits()], 1, dims=1) if isinstance(need, FilteredLogits) else value
        for need, value in have.clean.items()
    }


def turned_gradients(have: Fitted) -> Evidence:
    """A little noise, and the gradient points the other way."""
    return {need: -value if isinstance(need, NoisedGradients) else value for need, value in have.clean.items()}


def steered_away(have: Fitted) -> Evidence:
    """Steered, the model names another class."""
    return {
        need: torch.roll(have.clean[Logits()], 1, dims=1) if isinstance(need, SteeredLogits) else value
        for need, value in have.clean.items()
    }


def another_opinion(have: Fitted) -> Evidence:
    """The second network names another class, and is sure of it."""
    return {
        need: 9.0 * torch.roll(have.clean[Logits()], 1, dims=1) if isinstance(need, SecondLogits) else value
        for need, value in have.clean.items()
    }


def no_opinion(have: Fitted) -> Evidence:
    """The second network does not know."""
    return {need: 0.1 * value if isinstance(need, SecondLogits) else value for need, value in have.clean.items()}


def badly_rebuilt(have: Fitted) -> Evidence:
    """Rebuilt, the item is its negative, and the model names another class."""
    other = 9.0 * torch.roll(have.clean[Logits()], 1, dims=1)
    found = {need: 1 - value if isinstance(need, Reconstruction) else value for need, value in have.clean.items()}
    return {need: other if isinstance(need, ReconstructedLogits) else value for need, value in found.items()}


def layers_of_others(have: Fitted) -> Evidence:
    """Every layer is that of an item of another class."""
    named = have.clean[Logits()].argmax(dim=1)
    other = torch.stack([((named != one).nonzero().squeeze(1)[7 * place % 50]) for place, one in enumerate(named)])
    return {need: value[other] if isinstance(need, Latent) else value for need, value in have.clean.items()}


def unlike_the_last(have: Fitted) -> Evidence:
    """The first layer is that of another item than the last."""
    first = next(need for need in have.detectors["layer_regression"].needs[1:])
    return {need: value.roll(1, dims=0) if need == first else value for need, value in have.clean.items()}


def scattered(have: Fitted) -> Evidence:
    """Around the item, and with values dropped, the model names another class at every second row."""
    named = torch.nn.functional.one_hot(have.clean[Logits()].argmax(dim=1), have.clean[Logits()].shape[1])

    def turned(answers: Tensor) -> Tensor:
        odd = torch.arange(answers.shape[1])[None, :, None] % 2 == 1
        return torch.where(odd, -20.0 * named[:, None], answers)

    return {
        need: turned(value) if isinstance(need, NoisyLogits | DropoutLogits) else value
        for need, value in have.clean.items()
    }


OUTLIERS: Mapping[str, Callable[[Fitted], Evidence]] = {
    "mahalanobis": far_latents,
    "kernel_density": far_latents,
    "lid": lambda have: have.attacked,
    "saliency_classifier": lambda have: have.attacked,
    "summary_classifier": lambda have: have.attacked,
    "gradient_direction": turned_gradients,
    "attribute_steering": steered_away,
    "feature_squeezing": changed_mind,
    "second_opinion": another_opinion,
    "second_entropy": no_opinion,
    "ml_loo": lambda have: have.attacked,
    "magnet": badly_rebuilt,
    "deep_knn": layers_of_others,
    "layer_regression": unlike_the_last,
    "bayesian_uncertainty": scattered,
    "region_vote": scattered,
    "outlier_class": lambda have: have.attacked,
    "binary_classifier": lambda have: have.attacked,
    "safetynet": lambda have: have.attacked,
    "shap_signature": lambda have: have.attacked,
    "x_ensemble": lambda have: have.attacked,
    "mask_classifier": lambda have: have.attacked,
    "detector_subnetwork": lambda have: have.attacked,
    "feature_denoising": changed_when_filtered,
}
LOWER_TAIL: frozenset[str] = frozenset()  # detectors whose paper calls small scores suspicious


@BY_PART
def test_a_planted_outlier_lands_in_the_tail_that_the_paper_names(name: str, kind: Kind) -> None:
    assert name in OUTLIERS, f"OUTLIERS in tests/offline/detectors/test_heads.py wants a line for {name!r}"
    have = fitted(kind)
    found = auroc(score(have, name, have.clean), score(have, name, OUTLIERS[name](have)))
    assert (1 - found if name in LOWER_TAIL else found) > 0.8


# Values.


def namespace() -> dict[str, Any]:
    """What the files of all detectors know by name, and of the denoisers and kinds of evidence that they print."""
    found: dict[str, Any] = vars(denoiser_table) | vars(plain) | vars(gradients) | vars(variants)
    for build in DETECTORS.values():
        found |= vars(sys.modules[build.__module__])
    return found


@BY_NAME
def test_a_detector_prints_as_the_call_that_makes_it(name: str) -> None:
    detector = DETECTORS[name](["a", "b", "c"])
    assert detector.name == name
    again = eval(repr(detector), namespace())
    assert again == detector
    assert hash(again) == hash(detector)
    assert repr(again) == repr(detector)


def changeable(detector: Any) -> list[str]:
    """The attributes that can be set on a detector: one for each setting of its own is tried, and one that is none."""
    found = []
    for name in (*(field.name for field in fields(detector)), "no_setting"):
        try:
            setattr(detector, name, None)
        except FrozenInstanceError:
            continue
        found.append(name)
    return found


@BY_NAME
def test_a_detector_is_frozen(name: str) -> None:
    detector: Any = fitted("images").detectors[name]
    assert changeable(detector) == []
    assert replace(detector) == detector


def test_a_detector_without_settings_is_frozen_or_not() -> None:
    assert changeable(make_dataclass("Bare", [], frozen=True)()) == []
    assert changeable(make_dataclass("Bare", [])()) == ["no_setting"]


def test_evidence_may_be_one_value_an_item() -> None:
    assert faults((), lambda gap: -gap, torch.rand(5)) == []
    assert faults((), lambda gap: -gap.round(), torch.rand(5)) != []


@BY_NAME
def test_a_setting_that_does_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*colour"):
        build_detector(name, ["a", "b"], {"colour": 1})


def test_a_detector_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown detector 'mahalanobi'.*mahalanobis"):
        build_detector("mahalanobi", ["a"], {})


# What an attacker differentiates.


@BY_PART
def test_every_listed_detector_can_be_differentiated_or_states_its_stand_ins(name: str, kind: Kind) -> None:
    """With respect to each piece of evidence that it named, and of the variants among them as denoisers make them."""
    have = fitted(kind)
    detector, head = have.detectors[name], have.heads[name]
    stated = vars(type(detector)).get("stand_ins")
    assert isinstance(stated, tuple)
    assert all(isinstance(one, StandIn) and one.step and one.derivative for one in stated)
    needs = list(detector.needs)

    def served(*values: Tensor) -> Tensor:
        answer: Tensor = head(dict(zip(needs, values, strict=True)))
        return answer

    assert faults(stated, served, *(have.clean[need][:32] for need in needs)) == []
