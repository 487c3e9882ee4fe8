"""UAP and GD-UAP: far better than random signs of the same size, on items that nothing was learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.layers import layers_of
from guard.offline.attacks.methods.gd_uap import GdUap, saturation
from guard.offline.attacks.methods.uap import Uap
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.norm_ball import sizes, uniform
from guard.offline.attacks.objective import log_odds
from guard.offline.attacks.shared_perturbation import MAX_LOG_ODDS
from guard.offline.crafting.onnx_model import open_compiled
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.work.parallel import Stop, Stopped
from tests.offline import tiny
from tests.offline.attacks.learning import learned, problem, seeded
from tests.offline.attacks.trained import fooled

BUDGET = {"images": 0.125, "vectors": 0.25}
MARGIN = 0.25  # of held-out items: what learning must be ahead of chance at least
WEAK_MARGIN = 0.15  # and DeepFool's form, which listens to the last items most


def chance(attack: Attack, kind: str) -> float:
    """What random signs of the same size, one draw for all items, achieve on held-out items: the mean of twenty."""
    model, _, (inputs, labels) = problem(kind)
    found = []
    for seed in range(20):
        signs = torch.randn(inputs.shape[1:], generator=seeded(seed)).sign()[None]
        signs = signs * (attack.budget or 0.0) / sizes(signs, attack.norm)  # type: ignore[arg-type]
        found.append(fooled(model, (inputs + signs).clamp(0, 1), labels))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (Uap(BUDGET["images"]), "images"),
        (Uap(BUDGET["images"], form="deepfool", epochs=4), "images"),
        (Uap(8 * BUDGET["images"], norm="l2"), "images"),
        (Uap(BUDGET["vectors"]), "vectors"),
        (Uap(3.4 * BUDGET["vectors"], norm="l2"), "vectors"),
    ],
    ids=repr,
)
def test_it_beats_chance_on_items_it_has_not_seen(attack: Uap, kind: str) -> None:
    given = problem(kind)
    model, _, (inputs, labels) = given
    attacked = learned(attack, given)(model, inputs, labels, seeded())
    margin = MARGIN if attack.form == "gradient" else WEAK_MARGIN
    assert fooled(model, attacked, labels) >= chance(attack, kind) + margin
    assert (sizes(attacked - inputs, attack.norm) <= attack.budget + 1e-6).all()
    if attack.norm == "linf":
        inner = (inputs > attack.budget) & (inputs < 1 - attack.budget)
        one = torch.where(inner, attacked - inputs, torch.nan)
        spread = one.nan_to_num(-9).amax(dim=0) - one.nan_to_num(9).amin(dim=0)
        assert (spread[~one.isnan().all(dim=0)] < 1e-6).all()  # the same for every item, where the box leaves room


def test_data_free_it_beats_chance_too() -> None:
    attack, given = GdUap(BUDGET["images"]), problem()
    model, _, (inputs, labels) = given
    attacked = learned(attack, given)(model, inputs, labels, seeded())
    assert fooled(model, attacked, labels) >= chance(attack, "images") + MARGIN


def test_data_free_means_that_no_value_is_looked_at() -> None:
    model, (inputs, labels), _ = problem()
    one, other = (GdUap(0.25).learn(model, given, labels, seeded()) for given in (inputs, 1 - inputs))
    assert torch.equal(one["perturbation"], other["perturbation"])


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_learning_raises_the_objective(kind: str) -> None:
    model, (inputs, labels), _ = problem(kind)
    budget = BUDGET[kind]

    def objective(shared: Tensor) -> float:
        with torch.no_grad():
            return float(log_odds(model((inputs + shared).clamp(0, 1)), labels).clamp_max(MAX_LOG_ODDS).mean())

    random = objective(uniform(inputs[:1], budget, "linf", seeded()))
    once, often = (Uap(budget, epochs=n).learn(model, inputs, labels, seeded())["perturbation"] for n in (1, 10))
    assert random + 0.5 < objective(once) <= objective(often) + 0.05


def test_more_steps_saturate_the_layers() -> None:
    model, (inputs, labels), _ = problem()
    noise = torch.rand(64, *tiny.SHAPE, generator=seeded(5))

    def objective(steps: int) -> float:
        attack = GdUap(BUDGET["images"], steps=steps)
        found = attack.learn(model, inputs, labels, seeded())["perturbation"]
        with torch.no_grad():
            return float(saturation(model, (noise + found).clamp(0, 1), attack).mean())

    assert objective(1) < objective(60)


def test_towards_a_class_it_ends_there() -> None:
    given = problem()
    model, _, (inputs, labels) = given
    for target in range(tiny.CLASSES):
        attacked = learned(Uap(0.35, target=target), given)(model, inputs, labels, seeded())
        others = labels != target
        with torch.no_grad():
            answers = model(attacked[others]).argmax(dim=1)
        assert (answers == target).float().mean() >= 0.6, target


def test_lots_learn_different_perturbations() -> None:
    model, (inputs, labels), _ = problem()
    for attack in (Uap(0.25), GdUap(0.25)):
        one, other = (attack.learn(model, inputs, labels, seeded(seed))["perturbation"] for seed in (0, 1))
        assert (one - other).abs().max() > 0.1


def test_all_layers_are_heard_of_modules_and_graphs_alike() -> None:
    images = torch.rand(3, *tiny.SHAPE)
    model, graph = tiny.image_model(), tiny.image_classifier().graph
    for layers in (layers_of(TorchModel(module), images, "it") for module in (model, graph)):
        assert [layer.shape[1] for layer in layers] == [8, 16, tiny.CLASSES]
        torch.testing.assert_close(layers[-1], model(images), rtol=1e-4, atol=1e-5)
    assert len(layers_of(TorchModel(tiny.vector_model()), torch.rand(3, tiny.FEATURES), "it")) == 3


def test_a_compiled_model_lends_its_torch_side_and_one_without_layers_is_refused(tmp_path: Path) -> None:
    images, labels = (torch.from_numpy(array) for array in tiny.data(40, seed=5))
    classifier = tiny.image_classifier()
    compiled = open_compiled(classifier, images.numpy(), tmp_path)
    attack, found = GdUap(0.25, steps=3), []
    graph = TorchModel(classifier.graph)
    for model in (graph, compiled, StoppableModel(compiled, Stop()), StoppableModel(graph, Stop())):
        found.append(attack.learn(model, images, labels, seeded())["perturbation"])
        assert torch.equal(found[0], found[-1])
    function = TorchModel(lambda images: images.flatten(1))
    for blind in (function, StoppableModel(function, Stop())):
        with pytest.raises(ConfigError, match="a function without layers; give a torch module instead"):
            attack.learn(blind, images, labels, seeded())
    with pytest.raises(ConfigError, match="this model has none"):
        attack.learn(TorchModel(torch.nn.Flatten()), images, labels, seeded())


def test_an_interrupt_ends_it_within_a_pass() -> None:
    images, labels = (torch.from_numpy(array) for array in tiny.data(4, seed=5))
    stop = Stop()
    stop.asked.set()
    with pytest.raises(Stopped):
        GdUap(0.25).learn(StoppableModel(TorchModel(tiny.image_model()), stop), images, labels, seeded())


@pytest.mark.parametrize("attack", [Uap(0.25), GdUap(0.25)], ids=repr)
def test_untaught_it_refuses(attack: Attack) -> None:
    model, _, (inputs, labels) = problem()
    with pytest.raises(ValueError, match="has not learned"):
        attack(model, inputs, labels, seeded())


def test_deepfool_has_no_target() -> None:
    with pytest.raises(ConfigError, match="target goes with form = 'gradient'"):
        Uap(0.25, form="deepfool", target=1)
