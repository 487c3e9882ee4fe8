"""Attributions and rows against captum or the model itself, in torch and as a compiled program."""

from __future__ import annotations

from functools import cache
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from guard.errors import ConfigError
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.backward_rules import GuidedGradient, Relevance
from guard.offline.evidence.kinds.dropout import DropoutLogits
from guard.offline.evidence.kinds.gradients import InputGradient
from guard.offline.evidence.kinds.integrated_gradients import IntegratedGradients
from guard.offline.evidence.kinds.left_out import Patches, PatchLatent, PatchLogits
from guard.offline.evidence.kinds.plain import FeatureMap, ModelSize, pooled
from guard.offline.evidence.kinds.reconstruction import ReconstructedLogits, Reconstruction
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.evidence.kinds.variants import NoisyLogits
from guard.offline.evidence.needs import Evidence, Need
from guard.offline.evidence.onnx_gather import CompiledGather
from guard.offline.networks.architectures import autoencoder
from tests.offline import tiny
from tests.offline.detectors.fitting import KINDS, Kind, items_of
from tests.offline.evidence import dropped

BY_KIND = pytest.mark.parametrize("kind", KINDS)
MODELS = {"images": tiny.image_model, "series": tiny.series_model, "vectors": tiny.vector_model}
DROPPED = {
    "images": dropped.image_classifier,
    "series": dropped.series_classifier,
    "vectors": dropped.vector_classifier,
}
EPSILON = 0.25
PATCHES = Patches(4, value=0.25)
INTEGRATED, NOISY, DROPOUT = IntegratedGradients(6, 0.25), NoisyLogits(0.1, rows=3, seed=5), DropoutLogits(4, seed=3)


@cache
def rebuilding(kind: Kind) -> SecondNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = autoencoder(DROPPED[kind]().item_shape).eval().requires_grad_(False)
        list(network.parameters())[-1].fill_(0.5)  # of the last layer: most values lie within the box
    return SecondNetwork("autoencoder", kind, 0.2, network)


def every_need(kind: Kind) -> list[Need]:
    taps = [tap.name for tap in DROPPED[kind]().taps]
    return [
        *(InputGradient(), INTEGRATED, GuidedGradient(), Relevance(EPSILON), NOISY, DROPOUT),
        *(PatchLogits(PATCHES), *(PatchLatent(tap, PATCHES) for tap in taps)),
        *(ReconstructedLogits(rebuilding(kind)), FeatureMap(taps[0])),
    ]


@cache
def together(kind: Kind) -> tuple[Evidence, Evidence]:
    """All of them at once, in torch and as a compiled program."""
    gather, inputs = Gather(DROPPED[kind](), every_need(kind)), items(kind)
    with torch.no_grad():
        found: Evidence = gather(inputs)
    return found, CompiledGather(gather, inputs[:3].numpy())(inputs.numpy())


def items(kind: Kind) -> Tensor:
    return items_of(kind, seed=21)[0][:24]


def named(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs).argmax(dim=1)


def found_of(kind: Kind, need: Need) -> list[Tensor]:
    """What a need is alone, beside all others, and in the compiled program with these."""
    with torch.no_grad():
        alone: Evidence = Gather(DROPPED[kind](), [need])(items(kind))
    return [one[need] for one in (alone, *together(kind))]


def assert_close(found: list[Tensor], expected: Tensor, rtol: float = 1e-3) -> None:
    assert float(expected.std()) > 0
    for one in found:
        torch.testing.assert_close(one, expected, rtol=rtol, atol=1e-5)


@pytest.mark.slow
@BY_KIND
def test_integrated_gradients_are_captums(kind: Kind) -> None:
    model, inputs = MODELS[kind](), items(kind)
    reference = captum.attr.IntegratedGradients(model).attribute(
        inputs, baselines=0.25, target=named(model, inputs), n_steps=6, method="gausslegendre"
    )
    assert_close(found_of(kind, INTEGRATED), reference.float())


@BY_KIND
def test_integrated_gradients_add_up_to_what_they_explain(kind: Kind) -> None:
    model, inputs = MODELS[kind](), items(kind)
    with torch.no_grad():
        found = Gather(DROPPED[kind](), [IntegratedGradients(64)])(inputs)[IntegratedGradients(64)]
        at, from_black = (model(x).gather(1, named(model, inputs)[:, None]) for x in (inputs, torch.zeros_like(inputs)))
    torch.testing.assert_close(found.flatten(1).sum(dim=1, keepdim=True), at - from_black, rtol=0.05, atol=0.1)


@BY_KIND
def test_guided_backpropagation_is_captums(kind: Kind) -> None:
    model, inputs = unshared(MODELS[kind]()), items(kind)
    with pytest.warns(UserWarning, match="backward hooks on ReLU"):
        reference = captum.attr.GuidedBackprop(model).attribute(
            inputs.clone().requires_grad_(), target=named(model, inputs)
        )
    assert_close(found_of(kind, GuidedGradient()), reference.detach())


def unshared(model: nn.Module) -> nn.Module:
    """The same layers, each a module of its own, without those that captum has no rule for."""
    assert isinstance(model, nn.Sequential)
    return nn.Sequential(*(nn.ReLU() if isinstance(one, nn.ReLU) else one for one in model)).eval()


class Folded(nn.Module):
    """A tiny model as it is opened, each layer that adds up with captum's epsilon rule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        assert isinstance(model, nn.Sequential)
        layers = list(model)
        if isinstance(layers[1], nn.BatchNorm2d):  # of a series it is not folded, and is a scale and a shift by itself
            layers[:2] = [fuse_conv_bn_eval(layers[0], layers[1])]  # type: ignore[type-var]
        self.layers = nn.ModuleList(
            nn.ReLU() if isinstance(one, nn.ReLU) else one for one in layers if not isinstance(one, nn.Flatten)
        )
        for layer in self.layers:
            if not isinstance(layer, nn.ReLU):
                scales = isinstance(layer, nn.BatchNorm1d)
                layer.rule = EpsilonRule(1e-9 if scales else EPSILON)  # type: ignore[assignment]
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs.flatten(1) if isinstance(layer, nn.Linear) else inputs)
        return inputs


@BY_KIND
def test_relevance_is_captums_epsilon_rule(kind: Kind) -> None:
    model, inputs = Folded(MODELS[kind]()), items(kind)
    reference = captum.attr.LRP(model).attribute(inputs.clone().requires_grad_(), target=named(MODELS[kind](), inputs))
    assert_close(found_of(kind, Relevance(EPSILON)), reference.detach())
    with torch.no_grad():
        near = Gather(DROPPED[kind](), [Relevance(1e-9), InputGradient()])(inputs)
    torch.testing.assert_close(
        near[Relevance(1e-9)], inputs * near[InputGradient()], rtol=1e-3, atol=1e-4
    )  # a step near zero magnifies rounding
    assert not torch.allclose(near[Relevance(1e-9)], reference, rtol=0.05, atol=1e-3), "epsilon matters"


def mask_of(kind: Kind, inputs: Tensor) -> Tensor:
    """The number of the part that each value belongs to, as captum wants it."""
    parts = PATCHES.parts(tuple(inputs.shape[1:]))
    assert bool((parts.sum(dim=0) == 1).all()), "they tile the item"
    return parts.argmax(dim=0).expand(1, *inputs.shape[1:])


@BY_KIND
def test_leave_one_out_is_captums_feature_ablation(kind: Kind) -> None:
    model, inputs = MODELS[kind](), items(kind)
    mask, top = mask_of(kind, inputs), named(model, inputs)
    reference = captum.attr.FeatureAblation(model).attribute(inputs, baselines=0.25, target=top, feature_mask=mask)
    for found in found_of(kind, PatchLogits(PATCHES)):
        with torch.no_grad():
            lost = (model(inputs)[:, None] - found).gather(2, top[:, None, None].expand(-1, found.shape[1], 1))[..., 0]
        spread = lost.gather(1, mask.expand_as(inputs).flatten(1)).reshape(inputs.shape)
        torch.testing.assert_close(spread, reference, rtol=1e-3, atol=1e-4)


@BY_KIND
def test_layers_without_a_part_are_what_they_say_of_the_item_without_it(kind: Kind) -> None:
    classifier, inputs = DROPPED[kind](), items(kind)
    parts = PATCHES.parts(classifier.item_shape)
    for tap in classifier.taps:
        need = PatchLatent(tap.name, PATCHES)
        with torch.no_grad():
            layers = [classifier.opened([tap.name])(inputs * (1 - part) + 0.25 * part)[1] for part in parts]
            expected = torch.stack([pooled(layer, inputs) for layer in layers], dim=1)
        assert_close(found_of(kind, need), expected)
        assert Gather(classifier, [need]).rows == PATCHES.count, "the rows are paid for once"
        assert Gather(classifier, [need, PatchLogits(PATCHES)]).rows == PATCHES.count


def test_parts_of_an_image_are_squares_of_all_channels() -> None:
    parts = Patches(16).parts((3, 32, 32))
    assert parts.shape == (16, 1, 1, 32, 32)
    assert parts[5, 0, 0].nonzero().aminmax(dim=0).min.tolist() == [8, 8]
    assert float(parts[5].sum()) == 64
    assert Patches(16).parts((2, 24)).shape == (16, 1, 1, 24)
    assert Patches(16).parts((12,)).shape == (12, 1, 12), "no more parts than features"
    with pytest.raises(ConfigError, match="count = 15; wanted a square"):
        Patches(15)


@BY_KIND
def test_noisy_rows_are_the_models_answers_around_the_item(kind: Kind) -> None:
    classifier, inputs = DROPPED[kind](), items(kind)
    noise = NOISY.fixed(classifier.item_shape)
    assert float(noise.abs().max()) <= 0.1
    assert float(noise.std()) == pytest.approx(0.1 / 3**0.5, rel=0.2)
    with torch.no_grad():
        expected = torch.stack([classifier((inputs + one).clamp(0, 1)) for one in noise], dim=1)
    assert_close(found_of(kind, NOISY), expected)


@BY_KIND
def test_a_reconstruction_and_the_models_answer_to_it(kind: Kind) -> None:
    classifier, inputs, network = DROPPED[kind](), items(kind), rebuilding(kind)
    need, rebuilt = ReconstructedLogits(network), Reconstruction(network)
    with torch.no_grad():
        expected = network.network(inputs).clamp(0, 1)
        answers = classifier(expected)
    assert_close(found_of(kind, rebuilt), expected)
    assert_close(found_of(kind, need), answers)
    gather = Gather(classifier, [need])
    assert (gather.rows, gather.forwards) == (1, 0.2), "the reconstruction comes with it, and is paid for"


@BY_KIND
def test_dropout_rows_are_the_model_with_values_dropped_by_hand(kind: Kind) -> None:
    classifier, inputs = DROPPED[kind](), items(kind)
    ((node, dropout),) = classifier.dropouts.items()
    assert dropout.share == dropped.SHARE
    assert node == classifier.taps[-1].node
    model = MODELS[kind]()
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        hidden = model[:-1](inputs)
        kept = dropout.kept(4, tuple(hidden.shape[1:]), torch.Generator().manual_seed(3))
        expected = torch.stack([model[-1](hidden * one) for one in kept], dim=1)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropped.SHARE)])
    assert_close(found_of(kind, DROPOUT), expected)


def test_a_dropout_of_channels_and_one_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the item itself, since no layer lies before the first: each channel of a map as a whole."""
    from guard.offline.model.open_model import Source, open_model

    layers = list(unshared(tiny.image_model()))  # type: ignore[call-overload]
    model = nn.Sequential(nn.Dropout(0.2), *layers[:3], nn.Dropout2d(0.5), *layers[3:]).eval()
    monkeypatch.setattr(dropped, "other_model", lambda: model, raising=False)
    classifier = open_model(Source(f"{dropped.__name__}:other_model", tiny.SHAPE, grid=tiny.GRID))
    inputs, need = items("images"), DropoutLogits(rows=3, seed=1)
    assert [one.channels for one in classifier.dropouts.values()] == [False, True]
    generator = torch.Generator().manual_seed(1)
    first, second = (
        one.kept(3, shape, generator)
        for one, shape in zip(classifier.dropouts.values(), [tiny.SHAPE, (8, 8, 8)], strict=True)
    )
    assert second.shape == (3, 1, 8, 1, 1)
    with torch.no_grad():
        expected = torch.stack([model[5:](model[1:4](inputs * a) * b) for a, b in zip(first, second, strict=True)], 1)
        found = Gather(classifier, [need])(inputs)[need]
    compiled = CompiledGather(Gather(classifier, [need]), inputs[:3].numpy())(inputs.numpy())[need]
    assert_close([found, compiled], expected)


def test_a_model_without_dropout_says_so() -> None:
    lacking = DropoutLogits().lacks(tiny.image_classifier())
    assert lacking == "the model has no dropout"
    with pytest.raises(ConfigError, match=lacking):
        Gather(tiny.image_classifier(), [DropoutLogits()])


@BY_KIND
def test_a_feature_map_and_the_size_of_the_model(kind: Kind) -> None:
    classifier, inputs = DROPPED[kind](), items(kind)
    need = FeatureMap(classifier.taps[0].name)
    with torch.no_grad():
        assert_close(found_of(kind, need), classifier.opened([need.tap])(inputs)[1])
        sizes = Gather(classifier, [ModelSize()])(inputs)[ModelSize()]
    model = MODELS[kind]()
    weights = [one for one in model.modules() if isinstance(one, nn.Linear)]
    if kind == "vectors":
        assert sizes.tolist() == [sum(one.weight.numel() for one in weights)] * len(inputs)
    assert bool((sizes > sum(one.weight.numel() for one in weights) - 1).all())


# The attacker's derivatives, and what is paid.


@pytest.mark.parametrize("need", [IntegratedGradients(4), GuidedGradient(), Relevance()], ids=repr)
@BY_KIND
def test_smooth_changes_no_value_and_gives_a_derivative(kind: Kind, need: Need) -> None:
    inputs = items(kind).requires_grad_()
    plain, smooth = (Gather(DROPPED[kind](), [need], smooth=one)(inputs)[need] for one in (False, True))
    torch.testing.assert_close(smooth, plain, rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(smooth.square().sum(), inputs)
    assert bool((slope.flatten(1).abs().amax(dim=1) > 0).all())


def test_backwards_by_other_rules_are_over_the_items_alone() -> None:
    """Beside ten copies of each item, whose gradient alone the plain backward takes."""
    sizes: list[int] = []

    class Watched(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is torch.ops.aten.conv2d.default:
                sizes.append(len(args[0]))
            return super().call_function(target, args, kwargs)

    gather = Gather(tiny.image_classifier(), [IntegratedGradients(10), GuidedGradient(), Relevance()])
    inputs = items("images")[:6]
    with torch.no_grad():
        Watched(gather.plain).run(gather.with_copies(inputs))
    forward = sizes[:2]
    assert forward == [66, 66]
    assert sorted(sizes[2:]) == [6, 6, 6, 6, 66, 66], "two layers, and three backwards"
    assert (gather.rows, gather.backwards) == (10, 13), "the item's own gradient comes with the copies"


def test_every_kind_is_the_same_whatever_the_batch() -> None:
    gather, inputs = Gather(dropped.image_classifier(), every_need("images")), items("images")
    with torch.no_grad():
        whole = gather(inputs)
        for index in (slice(0, 1), slice(3, 10), np.random.default_rng(0).permutation(len(inputs)).tolist()):
            part = gather(inputs[index])
            for need, value in whole.items():
                torch.testing.assert_close(part[need], value[index], rtol=1e-3, atol=1e-5)
    assert set(whole) > set(every_need("images"))
