"""Each detector against a reference or numbers worked out by hand, and what it refuses to be fitted on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis as reference_mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import KernelDensity as ReferenceDensity
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from guard.errors import ConfigError, DataError
from guard.offline.data.attacked import Attacked
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.detectors.attribute_steering import (
    TRIED,
    AttributeSteering,
    AttributeSteeringHead,
    critical_channels,
)
from guard.offline.detectors.detector import Examples, Head
from guard.offline.detectors.feature_squeezing import FeatureSqueezing
from guard.offline.detectors.gradient_direction import GradientDirection
from guard.offline.detectors.kernel_density import KernelDensity, typical_distance
from guard.offline.detectors.lid import Lid
from guard.offline.detectors.mahalanobis import Mahalanobis, fit_metric
from guard.offline.detectors.parts import logistic
from guard.offline.detectors.parts.logistic import RIDGE_PENALTY, fit_logistic
from guard.offline.detectors.parts.summary_numbers import numbers_of
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss, odds_of_attack
from guard.offline.detectors.saliency_classifier import SaliencyClassifier, SaliencyClassifierHead
from guard.offline.detectors.summary_classifier import SummaryClassifierHead
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.kinds.gradients import InputGradient, Noise, NoisedGradients
from guard.offline.evidence.kinds.plain import Image, Latent, Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from guard.offline.evidence.needs import Evidence
from tests.offline.detectors.fitting import fitted

TAP = Latent("tap")
CLASSES = 3


def latents(items: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents [item, 4] around a centre for each class, correlated, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, items)
    mixing = generator.normal(size=(4, 4))
    z = 3.0 * np.eye(CLASSES, 4)[labels] + generator.normal(size=(items, 4)) @ mixing
    return torch.from_numpy(z).float(), torch.from_numpy(labels)


def sure_of(labels: Tensor) -> Tensor:
    return 10.0 * torch.nn.functional.one_hot(labels, CLASSES).float()


def examples(z: Tensor, labels: Tensor, noisy: Tensor | None = None) -> Examples:
    clean: Evidence = {TAP: z, Logits(): sure_of(labels), Image(): z}
    nothing: Evidence = {need: value[:0] for need, value in clean.items()}
    moved = nothing if noisy is None else {**nothing, TAP: noisy, Logits(): sure_of(labels)}
    return Examples(clean, labels, moved, Attacked(nothing, ()), seed=0)


def test_mahalanobis_is_scipys_distance_to_the_predicted_class() -> None:
    z, labels = latents()
    head = Mahalanobis((TAP,), shrinkage=0.0).fit(examples(z, labels))
    centres = torch.stack([z[labels == k].mean(dim=0) for k in range(CLASSES)])
    covariance = EmpiricalCovariance(assume_centered=True).fit((z - centres[labels]).numpy())
    others = (labels + 1) % CLASSES
    squared = np.asarray(
        [
            reference_mahalanobis(item.numpy(), centres[named].numpy(), covariance.precision_) ** 2
            for item, named in zip(z, others, strict=True)
        ]
    )
    found = head({TAP: z, Logits(): sure_of(others)}).exp().numpy() * float(head.metrics.get_buffer("0.scale"))
    np.testing.assert_allclose(found, squared, rtol=1e-3)


def test_noise_is_part_of_mahalanobis_metric() -> None:
    """Noise moves the last feature alone: it then lies as far as clean items do, and what moves the first stays far."""
    z, labels = latents()
    last, first = (40.0 * torch.eye(4)[place] for place in (3, 0))
    sign = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], len(z))).float()[:, None]
    known, deaf = (Mahalanobis((TAP,)).fit(examples(z, labels, noisy)) for noisy in (z + sign * last, None))

    def away(head: Head, moved: Tensor) -> float:
        """How much further than clean items the moved ones lie, in the logarithm."""
        named = sure_of(labels)
        return float((head({TAP: moved, Logits(): named}) - head({TAP: z, Logits(): named})).mean())

    assert away(deaf, z + sign * last) > away(known, z + sign * last) + 2
    assert away(known, z + sign * last) < 1.5
    assert away(known, z + sign * first) > away(known, z + sign * last) + 2


def test_mahalanobis_to_the_nearest_class_does_not_ask_the_model() -> None:
    z, labels = latents()
    head = Mahalanobis((TAP,), centre="nearest").fit(examples(z, labels))
    assert torch.equal(
        head({TAP: z, Logits(): sure_of(labels)}), head({TAP: z, Logits(): sure_of((labels + 1) % CLASSES)})
    )


def test_the_median_clean_item_has_distance_one() -> None:
    z, labels = latents()
    metric = fit_metric(z, labels, CLASSES, shrinkage=0.01)
    assert float(metric(z, labels).median()) == pytest.approx(1.0)


def test_latents_that_do_not_vary_do_no_harm() -> None:
    z, labels = latents()
    z[:, 2] = 7.0
    for rows in (z, torch.zeros_like(z)):
        head = Mahalanobis((TAP,)).fit(examples(rows, labels))
        assert bool(head({TAP: rows + 1, Logits(): sure_of(labels)}).isfinite().all())


def test_a_class_without_items_has_a_centre() -> None:
    z, labels = latents()
    head = Mahalanobis((TAP,)).fit(examples(z[labels != 1], labels[labels != 1]))
    assert bool(head({TAP: z, Logits(): sure_of(torch.ones_like(labels))}).isfinite().all())


@pytest.mark.parametrize("references", [60, 10_000])
def test_kernel_density_is_scikit_learns(references: int) -> None:
    z, labels = latents(90)
    labels = torch.arange(90) % CLASSES
    detector = KernelDensity(TAP, bandwidth=0.7, references=references)
    head = detector.fit(examples(z, labels))
    bandwidth = 1 / (math.sqrt(2) * float(head.scale))
    kept = head.near.points / head.scale + head.middle
    assert len(kept) == min(references, 90)
    classes = (head.near.table < 1e5).float().argmax(dim=0)
    probes, named = z + 0.3, (labels + 1) % CLASSES
    found = -head({TAP: probes, Logits(): sure_of(named)}).detach().numpy()
    constant = 2.0 * math.log(2 * math.pi * bandwidth**2)  # log of the Gaussian's normaliser, four features
    for k in range(CLASSES):
        reference = ReferenceDensity(bandwidth=bandwidth).fit(kept[classes == k].numpy())
        mine = named == k
        np.testing.assert_allclose(
            found[mine], reference.score_samples(probes[mine].numpy()) + constant, rtol=1e-3, atol=1e-3
        )


def test_the_bandwidth_is_a_share_of_the_typical_distance() -> None:
    z, labels = latents(60)
    head = KernelDensity(TAP, bandwidth=0.25).fit(examples(z, labels))
    assert 1 / (math.sqrt(2) * float(head.scale)) == pytest.approx(0.25 * typical_distance(z, labels), rel=0.05)
    larger = KernelDensity(TAP, bandwidth=0.25).fit(examples(100 * z, labels))
    assert float(larger.scale) * 100 == pytest.approx(float(head.scale), rel=1e-3)


def test_feature_squeezing_is_the_largest_change_of_the_probabilities() -> None:
    detector = FeatureSqueezing((BitDepth(1), BitDepth(2)))
    plain = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    one, two = plain.roll(1, dims=1), plain
    head = detector.fit(examples(*latents(9)))
    found = head({Logits(): plain, DenoisedLogits(BitDepth(1)): one, DenoisedLogits(BitDepth(2)): two})
    by_hand = (one.softmax(1) - plain.softmax(1)).abs().sum(1)
    torch.testing.assert_close(found, by_hand)
    assert found[1] == 0
    assert float(found[2]) == pytest.approx(2.0)


def test_saliency_classifier_sees_the_gradients_size_as_well_as_its_form() -> None:
    have = fitted("images")
    detector = have.detectors["saliency_classifier"]
    assert isinstance(detector, SaliencyClassifier)
    larger = {**have.clean, detector.gradient: 100 * have.clean[detector.gradient]}
    turned = {**have.clean, detector.gradient: -have.clean[detector.gradient]}
    with torch.no_grad():
        scores = [have.heads["saliency_classifier"](items) for items in (have.clean, larger, turned)]
    assert all(float((other - scores[0]).abs().mean()) > 0.1 * float(scores[0].std()) for other in scores[1:])


def test_attacks_weigh_the_same_and_noise_half_of_the_negatives() -> None:
    weights = item_weights(240, 240, Attacked(None, ("a",) * 200 + ("b",) * 40))
    clean, noisy, attacked = weights.split(240)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(attacked[:200].sum()) == pytest.approx(float(attacked[200:].sum()), rel=1e-4)
    assert float(attacked.sum()) == pytest.approx(float(clean.sum() + noisy.sum()), rel=1e-4)
    assert float(noisy.sum()) == pytest.approx(float(clean.sum()), rel=1e-4)


def test_kinds_are_clean_then_one_a_family() -> None:
    assert item_kinds(3, Attacked(None, ("pgd", "cw", "pgd"))).tolist() == [0, 0, 0, 2, 1, 2]


@pytest.mark.parametrize("name", ["saliency_classifier", "summary_classifier"])
def test_classifiers_tell_each_attack_from_the_others(name: str) -> None:
    have = fitted("images")
    head = have.heads[name]
    assert isinstance(head, SaliencyClassifierHead | SummaryClassifierHead)
    kinds = (
        head.last.out_features if isinstance(head, SaliencyClassifierHead) else len(head.state_dict()["body.4.bias"])
    )
    assert kinds == 1 + len(set(have.examples.attacked.by)) == 3


def test_odds_of_attack_are_those_of_all_kinds_together() -> None:
    answers = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    clean = answers.softmax(dim=1)[:, 0]
    torch.testing.assert_close(odds_of_attack(answers), ((1 - clean) / clean).log(), rtol=1e-4, atol=1e-4)


def test_with_one_family_the_loss_is_the_logistic_one() -> None:
    generator = torch.Generator().manual_seed(0)
    answers, weights = torch.randn(40, 2, generator=generator), torch.rand(40, generator=generator)
    kinds = item_kinds(15, Attacked(None, ("pgd",) * 25))
    expected = binary_cross_entropy_with_logits(odds_of_attack(answers), kinds.float(), weights)
    torch.testing.assert_close(kind_loss(answers, kinds, weights), expected)


def test_lid_is_the_maximum_likelihood_estimate() -> None:
    """Uniform in a cube of 2 or 6 dimensions: the estimate finds the number of dimensions."""
    generator = np.random.default_rng(0)
    for dimensions in (2, 6):
        cube = torch.from_numpy(generator.uniform(size=(3000, dimensions))).float()
        clean: Evidence = {TAP: cube}
        nothing: Evidence = {TAP: cube[:0]}
        labels = torch.zeros(len(cube), dtype=torch.int64)
        head = Lid((TAP,), references=3000).fit(Examples(clean, labels, nothing, Attacked(nothing, ()), seed=0))
        probes = 0.3 + 0.4 * torch.from_numpy(generator.uniform(size=(200, dimensions))).float()
        assert float(head.dimensions({TAP: probes}).exp().median()) == pytest.approx(dimensions, rel=0.35)


def test_lid_by_hand() -> None:
    bank = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    clean: Evidence = {TAP: bank}
    nothing: Evidence = {TAP: bank[:0]}
    head = Lid((TAP,), neighbours=2).fit(
        Examples(clean, torch.zeros(4, dtype=torch.int64), nothing, Attacked(nothing, ()), seed=0)
    )
    found = head.dimensions({TAP: torch.tensor([[0.0]])}).exp()  # distances 0, 1, 2, 4: the nearest is left out
    assert float(found) == pytest.approx(2 / math.log(2), rel=1e-4)


def test_gradient_direction_is_one_minus_the_cosine() -> None:
    need = NoisedGradients(Noise(0.1, rows=2), "margin")
    head = GradientDirection(need).fit(examples(*latents(9)))
    own = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    noisy = torch.tensor([[[2.0, 0.0], [0.0, 5.0]], [[-1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(
        head({InputGradient("margin"): own, need: noisy}), torch.tensor([0.5, 2.0, 1.0]), rtol=1e-5, atol=1e-5
    )


def regression_items(case: str) -> tuple[Tensor, Tensor, Attacked[Tensor]]:
    """Numbers [item, 3] of clean and noisy items, and of two attacks of unequal numbers."""
    generator = torch.Generator().manual_seed(0)
    clean, noisy, attacked = (torch.randn(items, 3, generator=generator) for items in (300, 100, 90))
    shift = {"overlapping": 0.5, "apart": 20.0}.get(case, 1.0)
    parts = [clean, noisy + 0.1, attacked + shift * torch.tensor([1.0, 0.0, -0.5])]
    if case == "alike":
        parts = [part[:, :1].repeat(1, 3) for part in parts]
    if case == "constant":
        parts = [torch.cat([part[:, :2], torch.full((len(part), 1), 7.0)], dim=1) for part in parts]
    if case == "large":
        parts = [1e6 * part - 1e7 for part in parts]
    return parts[0], parts[1], Attacked(parts[2], ("pgd",) * 60 + ("fgsm",) * 30)


@pytest.mark.parametrize("case", ["overlapping", "apart", "alike", "constant", "large"])
def test_a_logistic_regression_has_the_smallest_loss_as_it_is_stated(case: str) -> None:
    """At the one minimum of a strictly convex function, and there alone, it has no slope."""
    clean, noisy, attacked = regression_items(case)
    fit = fit_logistic(clean, noisy, attacked)
    numbers = torch.cat([clean, noisy, attacked.items]).double()
    target = torch.cat([torch.zeros(len(clean) + len(noisy)), torch.ones(len(attacked))]).double()
    spread = numbers.std(dim=0).clamp_min(1e-6)
    scaled = (numbers - numbers.mean(dim=0)) / spread
    theta = torch.cat([fit.slopes.double() * spread, fit.bias.double()[None]]).requires_grad_()
    weights = item_weights(len(clean), len(noisy), attacked).double()
    losses = binary_cross_entropy_with_logits(scaled @ theta[:-1] + theta[-1], target, weights)
    (losses + RIDGE_PENALTY / 2 * theta[:-1].square().sum()).backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() < 1e-7
    assert theta[:-1].detach().abs().max() > 0.1
    again = fit_logistic(clean, noisy, attacked)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in fit.state_dict().items())


def test_a_logistic_regression_that_cannot_be_fitted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, noisy, attacked = regression_items("overlapping")
    broken = clean.clone()
    broken[3, 0] = math.nan
    with pytest.raises(DataError, match="over 3 numbers an item: 1 of 490 items have one that is not finite; leave"):
        fit_logistic(broken, noisy, attacked)
    monkeypatch.setattr(logistic, "MAX_NEWTON_STEPS", 1)
    with pytest.raises(DataError, match=r"490 items did not converge: .* after 1 iterations\.; leave the detector out"):
        fit_logistic(clean, noisy, attacked)


def test_critical_channels_are_those_that_add_most_to_their_class() -> None:
    attribution = torch.tensor([[9.0, 1.0, 0.0, 0.0], [7.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 5.0]])
    mask = critical_channels(attribution, torch.tensor([0, 0, 2]), 3, share=0.25).mask()
    assert mask.argmax(dim=1).tolist() == [0, 0, 3], "class 1 has no items: all items judge"
    assert mask.sum(dim=1).tolist() == [1, 1, 1]


def test_steering_learns_the_strength_that_tells_most_apart() -> None:
    detector = fitted("images").detectors["attribute_steering"]
    assert isinstance(detector, AttributeSteering)
    assert detector.steering is not None
    assert detector.steering.strength in TRIED
    with pytest.raises(DataError, match="learn"):
        AttributeSteeringHead(replace(detector, steering=None))


@pytest.mark.parametrize("name", ["summary_classifier", "saliency_classifier"])
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_it_learns_on_both_kinds(name: str, kind: str) -> None:
    have = fitted("images" if kind == "images" else "vectors")
    with torch.no_grad():
        clean, attacked = have.heads[name](have.clean), have.heads[name](have.attacked)
    assert ((clean < 0).float().mean() + (attacked > 0).float().mean()) / 2 > 0.75


def test_a_summary_without_the_gradient_asks_no_backward_and_learns() -> None:
    have = fitted("images")
    given = {"gradient": False, "squeezers": [{"name": "bit_depth", "bits": 4}]}
    detector = build_detector("summary_classifier", ["a"], given)
    assert [need.backwards for need in detector.needs] == [0] * len(detector.needs)
    evidence = [have.examples.clean, have.examples.noisy, have.examples.attacked.items]
    missing = [need for need in detector.needs if need not in evidence[0]]
    assert missing == []
    head = detector.fit(have.examples)
    with torch.no_grad():
        clean, attacked = head(have.clean), head(have.attacked)
    assert ((clean < 0).float().mean() + (attacked > 0).float().mean()) / 2 > 0.75


def grain(image: Tensor) -> Tensor:
    """The numbers of grain [item, number]: those that an image has beside a vector of the same logits."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    numbers, without = (numbers_of(given, logits, [], None)[0].tolist() for given in (image, image.flatten(1)))
    for number in without:
        numbers.remove(number)
    return torch.tensor(numbers)


def test_grain_does_not_mistake_brightness_for_noise() -> None:
    image = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()
    torch.testing.assert_close(grain(0.5 * image + 0.2), grain(0.5 * image), rtol=1e-3, atol=1e-3)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy, still = grain(image + 0.05 * noise), grain(image)
    assert len(noisy) == 3 + 4, "size, mean and peakedness; two directions and two pairs of channels"
    assert noisy[-3] > still[-3], "size"


def test_summary_numbers_by_hand() -> None:
    """Two classes, an opinion that turns the answer round, a gradient along the residual."""
    logits, opinion = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    image = torch.tensor([[0.2, 0.8, 0.2, 0.8]])
    numbers = numbers_of(image, logits, [opinion], image - image.mean())[0]
    share = 1 / (1 + math.exp(-2))
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    plain = [2.0, 1.0, math.log(math.e + 1 / math.e), 2.0, -2.0, 4.0]
    logs = [2.0 + 1e-2, entropy + 1e-4, 2 * (2 * share - 1) + 1e-4, math.sqrt(8) + 1e-3]
    torch.testing.assert_close(numbers[: len(plain)], torch.tensor(plain))
    torch.testing.assert_close(numbers[-6:-2], torch.tensor(logs).log())
    torch.testing.assert_close(numbers[-2], torch.tensor(0.6).log())
    assert numbers[len(plain)] > 0.5, "the residual lies along the gradient"


@pytest.mark.parametrize("map", ["gradient", "gradient_x_input", "smoothgrad"])
def test_maps_of_the_saliency_classifier(map: str) -> None:
    detector = build_detector("saliency_classifier", ["a"], {"map": map, "rows": 3})
    assert isinstance(detector, SaliencyClassifier)
    head = SaliencyClassifierHead(detector, torch.Size((1, 4, 4)), 2)
    image, slope = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    rows = torch.stack([slope, 3 * slope, 2 * slope], dim=1)
    evidence: Evidence = {Image(): image, detector.gradient: rows if map == "smoothgrad" else slope}
    expected = {"gradient": slope, "gradient_x_input": slope * image, "smoothgrad": 2 * slope}[map]
    torch.testing.assert_close(head.saliency(evidence), expected)
    with pytest.raises(ConfigError, match="map = 'sobel'"):
        build_detector("saliency_classifier", ["a"], {"map": "sobel"})


# What cannot answer the question.


def test_too_few_attacked_items_to_learn_from() -> None:
    z, labels = latents(30)
    with pytest.raises(DataError, match="got 0, wanted at least 20"):
        SaliencyClassifier().fit(examples(z, labels))


def test_too_few_clean_items() -> None:
    with pytest.raises(DataError, match="at least two clean items, got 1"):
        Mahalanobis((TAP,)).fit(examples(*(part[:1] for part in latents(30))))
    with pytest.raises(DataError, match="at least two clean items; got 1"):
        KernelDensity(TAP).fit(examples(*(part[:1] for part in latents(30))))


@pytest.mark.parametrize("detector", [Mahalanobis((TAP,)), KernelDensity(TAP)], ids=repr)
def test_one_item_a_class_is_judged_among_all(detector: Mahalanobis | KernelDensity) -> None:
    z, _ = latents(CLASSES)
    head = detector.fit(examples(z, torch.arange(CLASSES)))
    one, other = (head({TAP: z, Logits(): sure_of(torch.full((CLASSES,), named))}) for named in (0, 1))
    torch.testing.assert_close(one, other)
    assert bool((head({TAP: z + 50, Logits(): sure_of(torch.arange(CLASSES))}) > one.max()).all())
