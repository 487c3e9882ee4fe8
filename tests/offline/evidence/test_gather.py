"""All evidence at once: each kind equals its reference, and what is shared is paid for once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from guard.errors import ConfigError, ModelError
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.evidence.gather import Gather, distinct
from guard.offline.evidence.kinds.gradients import InputGradient, Noise, NoisedGradients
from guard.offline.evidence.kinds.plain import (
    ChannelAttribution,
    Image,
    Latent,
    Logits,
    PlainAnswers,
    PlainNeed,
    pooled,
)
from guard.offline.evidence.kinds.variants import DenoisedLogits, SteeredLogits
from guard.offline.evidence.needs import Need
from guard.offline.evidence.onnx_gather import CompiledGather, agree
from guard.offline.evidence.steering import Critical, Steer, Steering, Strength
from guard.offline.model.classifier import Classifier
from tests.offline import tiny
from tests.offline.detectors.fitting import KINDS, NAMES, Kind, fitted, items_of

BY_KIND = pytest.mark.parametrize("kind", KINDS)
NOISED = NoisedGradients(Noise(0.05, rows=2), "logit")
DENOISED = (DenoisedLogits(BitDepth(2)), DenoisedLogits(Median(2)), DenoisedLogits(Median(3)))


class FirstLayer(TorchDispatchMode):
    """Counts how often the image model's first convolution runs, and over how many rows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        if func is torch.ops.aten.convolution.default and tuple(given["weight"].shape) == (8, 1, 3, 3):
            self.rows.append(len(given["input"]))
        return func(*args, **(kwargs or {}))


def images(items: int = 20) -> Tensor:
    return items_of("images", seed=11)[0][:items]


def needs_of(classifier: Classifier) -> list[Need]:
    latents = [Latent(tap.name) for tap in classifier.taps]
    return [Logits(), *latents, InputGradient(), NOISED, *DENOISED, SteeredLogits(steering(classifier))]


def steering(classifier: Classifier) -> Steering:
    """The first half of each tap's channels is critical for class 0, the second half for the others."""
    critical = []
    for tap in classifier.taps:
        with torch.no_grad():
            (_, latent) = classifier.opened([tap.name])(torch.zeros(1, *classifier.item_shape))
        mask = torch.zeros(tiny.CLASSES, latent.shape[1])
        mask[0, : latent.shape[1] // 2] = 1.0
        mask[1:, latent.shape[1] // 2 :] = 1.0
        critical.append(Critical.of(mask))
    return Steering(tuple(tap.name for tap in classifier.taps), tuple(critical), Strength(0.5, 1.5, 5.0))


def passes(needs: Sequence[Need], items: int = 20) -> list[int]:
    """Rows of each forward pass of the model."""
    gather = Gather(tiny.image_classifier(), needs)
    with torch.no_grad(), FirstLayer() as counted:
        gather(images(items))
    rows: list[int] = counted.rows
    return rows


def flat(lists: Sequence[Sequence[Need]]) -> list[Need]:
    return [need for one in lists for need in one]


SHARING = (
    "mahalanobis",
    "kernel_density",
    "lid",
    "saliency_classifier",
    "gradient_direction",
    "summary_classifier",
    "attribute_steering",
    "feature_squeezing",
)

# What is shared is paid for once.


def test_one_plain_pass_whatever_is_asked() -> None:
    taps: list[Need] = [Latent(tap.name) for tap in tiny.image_classifier().taps]
    asked: list[list[Need]] = [[Logits()], taps, [*taps, Logits(), Image(), InputGradient()], []]
    for needs in asked:
        assert passes(needs) == [20]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_pass_for_all_variants_together(count: int) -> None:
    assert passes([Logits(), *DENOISED[:count]]) == [20, count * 20]


@pytest.mark.slow
def test_detectors_that_share_a_need_pay_once() -> None:
    have = fitted("images")
    each = [have.detectors[name].needs for name in SHARING]
    once, thrice = passes(flat(each)), passes(flat(each * 3))
    assert once == thrice == [2 * 20, 2 * 20], "each item beside its noisy copy; two squeezers; steered rows join later"
    assert len(distinct(flat(each * 3))) == len(set(flat(each)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bayesian_uncertainty"])  # there is no dropout
def test_a_detector_asked_for_three_times_pays_once(name: str) -> None:
    needs = list(fitted("images").detectors[name].needs)
    assert passes(needs) == passes(needs * 3)


def test_the_bill_says_so() -> None:
    needs: list[Need] = [Logits(), InputGradient(), *DENOISED]
    gather = Gather(tiny.image_classifier(), needs * 2)
    assert (gather.rows, gather.backwards) == (3, 1)
    plain = Gather(tiny.image_classifier(), [Logits()])
    assert (plain.rows, plain.backwards) == (0, 0)
    assert sum(passes(needs)) == 20 * (1 + gather.rows)


def test_two_backward_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 different input gradients.*wanted one"):
        Gather(tiny.image_classifier(), [InputGradient("logit"), InputGradient("margin")])


# Each kind is what it says.


@pytest.mark.slow
@BY_KIND
def test_logits_and_image(kind: Kind) -> None:
    have = fitted(kind)
    torch.testing.assert_close(have.clean[Logits()], have.classifier(have.inputs), rtol=1e-5, atol=1e-5)
    assert torch.equal(have.clean[Image()], have.inputs)


def test_the_models_own_answers() -> None:
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(tiny.image_classifier()(x), tiny.image_model()(x), rtol=1e-4, atol=1e-4)


def test_input_gradient_is_captums_saliency() -> None:
    x, model = images(), tiny.image_model()
    predicted = model(x).argmax(dim=1)
    reference = captum.attr.Saliency(model).attribute(x.clone().requires_grad_(), target=predicted, abs=False)
    with torch.no_grad():
        found = Gather(tiny.image_classifier(), [InputGradient()])(x)[InputGradient()]
    torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-5)


@BY_KIND
def test_margin_gradient_is_autograds(kind: Kind) -> None:
    have, need = fitted(kind), InputGradient("margin")
    x = have.inputs[:30].clone().requires_grad_()
    top = have.classifier(x).topk(2, dim=1).values
    (reference,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), x)
    with torch.no_grad():
        found = Gather(have.classifier, [need])(have.inputs[:30])[need]
    torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-5)


def test_latents_are_what_the_layers_said() -> None:
    model, x = tiny.image_model(), images()
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        feature_maps, penultimate = model[:3](x), model[:8](x)
        found = Gather(tiny.image_classifier(), [Latent(tap.name) for tap in tiny.image_classifier().taps])(x)
    first, last = (found[Latent(tap.name)] for tap in tiny.image_classifier().taps)
    torch.testing.assert_close(first, feature_maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, penultimate, rtol=1e-4, atol=1e-4)


@BY_KIND
def test_denoised_logits_are_the_models_answer_to_the_denoised(kind: Kind) -> None:
    have = fitted(kind)
    with torch.no_grad():
        found = Gather(have.classifier, DENOISED)(have.inputs)
        for need in DENOISED:
            torch.testing.assert_close(found[need], have.classifier(need.denoiser(have.inputs)), rtol=1e-4, atol=1e-4)


@BY_KIND
def test_noised_gradients_are_the_own_objectives_at_the_noisy_copies(kind: Kind) -> None:
    have = fitted(kind)
    x = have.inputs[:20]
    with torch.no_grad():
        found = Gather(have.classifier, [NOISED])(x)
    named = have.classifier(x).argmax(dim=1)
    for row, pattern in enumerate(NOISED.noise.patterns(tuple(x.shape[1:]))):
        copies = (x + pattern).clamp(0, 1).requires_grad_()
        (reference,) = torch.autograd.grad(have.classifier(copies).gather(1, named[:, None]).sum(), copies)
        torch.testing.assert_close(found[NOISED][:, row], reference, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        own = Gather(have.classifier, [InputGradient()])(x)[InputGradient()]
    torch.testing.assert_close(found[InputGradient()], own, rtol=1e-4, atol=1e-6)


def test_noise_is_the_same_whenever_it_is_asked_for() -> None:
    noise = Noise(0.05, rows=3, seed=4)
    assert torch.equal(noise.patterns((3, 16, 16)), noise.patterns((3, 16, 16)))
    assert float(noise.patterns((3, 32, 32)).std()) == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(noise.patterns((4,)), Noise(0.05, rows=3, seed=5).patterns((4,)))


@pytest.mark.parametrize("denoised", [(), DENOISED[:2]], ids=["alone", "beside denoised rows"])
def test_steered_logits_are_the_model_with_its_layers_changed_by_hand(denoised: Sequence[Need]) -> None:
    model, x = tiny.image_model(), images()
    assert isinstance(model, nn.Sequential)
    classifier = tiny.image_classifier()
    value = steering(classifier)
    masks = value.masks()
    first, last = (Steer(masks[tap.name], value.strength) for tap in classifier.taps)
    with torch.no_grad():
        named = nn.functional.one_hot(model(x).argmax(dim=1), tiny.CLASSES).float()
        expected = model[8](last(model[3:8](first(model[:3](x), named)), named))
        found = Gather(classifier, [SteeredLogits(value), *denoised])(x)
    torch.testing.assert_close(found[SteeredLogits(value)], expected, rtol=1e-4, atol=1e-4)
    assert float((expected - model(x)).abs().max()) > 0.1, "it is steered at all"


def test_steering_by_hand() -> None:
    """Critical channels 0 and 1 say 1 and 3: mean 2, deviation 1. Channel 2 lies 3 deviations above, 3 below."""
    steer = Steer(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), Strength(weaken=3.0, strengthen=1.15, reach=2.0))
    found = steer(torch.tensor([[1.0, 3.0, 5.0, -4.0]]), torch.ones(1, 1))
    share = math.exp(-1.0)  # of the far critical channel's reach, and of what the weakened one keeps
    expected = torch.tensor([[1.15, 3 * (1 + 1.15 - share), 5 * share, -4.0]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_steerings_of_different_taps_do_not_fit_into_one_pass() -> None:
    classifier = tiny.image_classifier()
    both = steering(classifier)
    one = Steering(both.taps[1:], both.critical[1:], both.strength)
    with pytest.raises(ConfigError, match=r"steer different layers.*wanted the same"):
        Gather(classifier, [SteeredLogits(both), SteeredLogits(one)])


def test_channel_attribution_is_captums() -> None:
    model, x = tiny.image_model(), images()
    assert isinstance(model, nn.Sequential)
    tap = tiny.image_classifier().taps[0].name
    named = model(x).argmax(dim=1)
    reference = captum.attr.LayerGradientXActivation(model, model[2]).attribute(x.requires_grad_(), target=named)
    with torch.no_grad():
        found = Gather(tiny.image_classifier(), [ChannelAttribution(tap)])(x.detach())[ChannelAttribution(tap)]
    torch.testing.assert_close(found, reference.sum(dim=(2, 3)).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@BY_KIND
def test_compiled_evidence_is_torchs(kind: Kind) -> None:
    have = fitted(kind)
    gather = Gather(have.classifier, needs_of(have.classifier))
    compiled = CompiledGather(gather, have.inputs[:4].numpy())
    with torch.no_grad():
        expected = gather(have.inputs[:31])
    found = compiled(have.inputs[:31].numpy())
    assert tuple(found) == gather.needs
    for need, value in expected.items():
        if need in found:
            torch.testing.assert_close(found[need], value, rtol=1e-3, atol=1e-4)
    assert compiled.agrees(expected, have.inputs[:31].numpy())
    wrong = {**expected, Logits(): expected[Logits()] + 1}
    assert not compiled.agrees(wrong, have.inputs[:31].numpy())


def test_a_latent_far_from_zero_is_judged_by_what_tells_items_apart() -> None:
    latents = 1e3 + torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    assert agree(Latent("tap"), latents + 1e-4, latents)
    assert not agree(Latent("tap"), latents + 0.02 * torch.randn_like(latents), latents)
    assert agree(Logits(), latents + 0.02, latents), "judged by its length, it would be a hundred-thousandth"


def test_pooling() -> None:
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    images, series = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 8)
    assert torch.equal(pooled(maps, images), maps.mean(dim=(2, 3)))
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    assert torch.equal(pooled(tokens, images), tokens.reshape(2, 6))
    assert torch.equal(pooled(tokens, series), tokens.mean(dim=2))


# An item depends on itself alone.


def dependent(classifier: Classifier, needs: Sequence[Need], x: Tensor) -> list[str]:
    """The needs whose evidence of an item changes with the items beside it, or with its place among them."""
    gather, found = Gather(classifier, needs), set()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [*torch.arange(len(x)).split(7), torch.tensor([3]), order]
    with torch.no_grad():
        whole = gather(x)
        for index in parts:
            for need, value in gather(x[index]).items():
                if not torch.allclose(value, whole[need][index], rtol=1e-4, atol=1e-5):
                    found.add(repr(need))
    return sorted(found)


@BY_KIND
def test_an_item_does_not_depend_on_its_batch(kind: Kind) -> None:
    have = fitted(kind)
    listed = flat([detector.needs for detector in have.detectors.values()])
    assert listed
    for needs in (needs_of(have.classifier), listed):
        assert dependent(have.classifier, needs, have.inputs[:21]) == []


@dataclass(frozen=True)
class LessHalfTheMean(PlainNeed):
    """Fault to be found: logits less half of what the batch has on average."""

    def read(self, plain: PlainAnswers) -> Tensor:
        return plain.logits - plain.logits.mean(dim=0) / 2


@BY_KIND
def test_evidence_that_depends_on_the_batch_is_named(kind: Kind) -> None:
    classifier, x = fitted(kind).classifier, fitted(kind).inputs[:21]
    assert dependent(classifier, [Logits(), LessHalfTheMean()], x) == ["LessHalfTheMean()"]


@BY_KIND
def test_inputs_and_weights_are_left_alone(kind: Kind) -> None:
    have = fitted(kind)
    x = have.inputs[:5].clone()
    weights = {name: value.clone() for name, value in have.classifier.graph.state_dict().items()}
    Gather(have.classifier, needs_of(have.classifier))(x)
    assert torch.equal(x, have.inputs[:5])
    assert x.grad is None
    assert all(torch.equal(value, weights[name]) for name, value in have.classifier.graph.state_dict().items())


# The attacker's derivatives.


@BY_KIND
def test_smooth_changes_no_value_but_gives_the_gradient_a_derivative(kind: Kind) -> None:
    have = fitted(kind)
    x = have.inputs[:10].clone().requires_grad_()
    plain, smooth = (
        Gather(have.classifier, [Logits(), InputGradient()], smooth=surrogate)(x) for surrogate in (False, True)
    )
    for need, value in smooth.items():
        torch.testing.assert_close(value, plain[need], rtol=1e-5, atol=1e-6)
    assert not plain[InputGradient()].requires_grad, "a ReLU network's gradient is piecewise constant"
    (slope,) = torch.autograd.grad(smooth[InputGradient()].square().sum(), x)
    assert bool((slope.flatten(1).abs().amax(dim=1) > 0).all())


def test_a_tap_that_does_not_exist_names_those_that_do() -> None:
    classifier = tiny.image_classifier()
    with pytest.raises(ModelError, match=f"no tap 'nowhere'.*{classifier.taps[0].name}"):
        Gather(classifier, [Latent("nowhere")])
