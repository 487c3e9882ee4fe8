"""A compiled model is the model: the same logits, the same gradients, and the same attacks succeed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.errors import ParityError
from guard.offline.attacks.methods.cw import Cw
from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.map_keeping import MapKeeping
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import Model, Objective, TorchModel
from guard.offline.attacks.objective import Gap, LogOdds, gap
from guard.offline.crafting import onnx_model as compiled
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.onnx_model import OnnxModel, SeedRule, check_compiled, open_compiled
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.work.store import ResultStore
from tests.offline import tiny

ATTACKS = (
    Fgsm(budget=0.25),
    Pgd(budget=0.125, steps=6),
    Pgd(budget=1.0, norm="l2", steps=6),
    DeepFool(steps=10),
    Cw(steps=20, searches=2),
)
IMAGES, LABELS = (torch.from_numpy(array) for array in tiny.data(40, seed=5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def model(folder: Path) -> OnnxModel:
    return open_compiled(tiny.image_classifier(), IMAGES.numpy(), folder)


@pytest.mark.parametrize(
    "objective",
    [
        LogOdds(LABELS),
        Gap(LABELS),
        LogOdds(LABELS, (LABELS + 1) % tiny.CLASSES),
        Gap(LABELS, (LABELS + 1) % tiny.CLASSES),
        lambda logits: (logits**2).sum(dim=1),
    ],
    ids=["log-odds", "gap", "log-odds of a target", "gap of a target", "unknown to it"],
)
def test_logits_values_and_gradients_are_torchs(model: OnnxModel, objective: Objective) -> None:
    found = model.value_and_gradient(IMAGES, objective)
    for one, other in zip(
        found, TorchModel(tiny.image_classifier().graph).value_and_gradient(IMAGES, objective), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model(IMAGES), found[0], rtol=1e-5, atol=1e-5)


def test_a_sharp_seed_is_the_best_rivals_even_when_logits_are_nearly_equal() -> None:
    logits = torch.tensor([[9.0, 8.9999, 8.9998], [-30.0, 30.0, 30.0]])
    labels = torch.tensor([0, 0])
    seed = compiled.RuledSeed()(logits, *SeedRule.of(Gap(labels), 3).parts)
    torch.testing.assert_close(seed, torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.5, 0.5]]))  # ties are shared, as in torch
    watched = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(gap(watched, labels).sum(), watched)
    torch.testing.assert_close(seed, expected)
    torch.testing.assert_close(compiled.RuledSeed()(logits, *SeedRule.given(logits).parts), logits)


def test_autograd_runs_through_it_more_than_once(model: OnnxModel) -> None:
    watched, plain = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    logits, expected = model(watched), tiny.image_classifier()(plain)
    for place in range(tiny.CLASSES):
        (found,) = torch.autograd.grad(logits[:, place].sum(), watched, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected[:, place].sum(), plain, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_fares_as_with_torch(model: OnnxModel, attack: Pgd) -> None:
    def attacked(by: Model) -> Tensor:
        return attack(by, IMAGES, LABELS, torch.Generator().manual_seed(3))

    with torch.no_grad():
        fooled, expected = (
            gap(tiny.image_classifier()(attacked(by)), LABELS) > 0
            for by in (model, TorchModel(tiny.image_classifier().graph))
        )
    assert expected.sum() >= 20
    assert (fooled == expected).float().mean() >= 0.95  # a kink may send an item another way
    assert torch.equal(attacked(model), attacked(model))


def test_it_is_written_once_and_found_again_to_the_last_bit(model: OnnxModel, folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = open_compiled(tiny.image_classifier(), IMAGES.numpy(), folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert again.engine == model.engine
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_another_model_in_its_place_is_noticed(model: OnnxModel) -> None:
    classifier = tiny.image_classifier()
    changed = copy.deepcopy(classifier.graph)
    with torch.no_grad():
        for tensor in (*changed.parameters(), *changed.buffers()):
            tensor.mul_(1.01)
    with pytest.raises(ParityError, match="differs from torch"):
        check_compiled(model, replace(classifier, graph=changed), IMAGES)


def test_vectors_are_climbed_too(tmp_path: Path) -> None:
    images, labels = tiny.vectors(40, seed=5)
    classifier = tiny.vector_classifier()
    model = open_compiled(classifier, images, tmp_path)
    _, _, found = model.value_and_gradient(torch.from_numpy(images), LogOdds(torch.from_numpy(labels)))
    _, _, wanted = TorchModel(classifier.graph).value_and_gradient(
        torch.from_numpy(images), LogOdds(torch.from_numpy(labels))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_a_gradients_own_gradient_is_the_torch_modules_to_the_last_bit(model: OnnxModel) -> None:
    attack, plain = MapKeeping(budget=0.25, steps=4), TorchModel(tiny.image_classifier().graph)
    found, wanted = (attack(by, IMAGES, LABELS, torch.Generator()) for by in (model, plain))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, IMAGES)


def test_crafting_hands_the_torch_side_to_what_differentiates_twice(model: OnnxModel, tmp_path: Path) -> None:
    hashes = [f"{item:064x}" for item in range(len(IMAGES))]
    run = CraftSetup(model, tiny.GRID, fingerprint="f", work=ResultStore(tmp_path), seed=0, workers=1)
    items = Dataset(IMAGES.numpy(), LABELS.numpy(), np.asarray(hashes))
    (found,) = craft(run, items, [MapKeeping(budget=0.25, steps=4)])
    assert len(found)
