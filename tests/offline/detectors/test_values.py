"""Each detector against a reference or numbers worked out by hand, and what it refuses to be fitted on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis as reference_mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import KernelDensity as ReferenceDensity
from torch import Tensor

from guard.errors import DataError
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.detectors.detector import Examples
from guard.offline.detectors.feature_squeezing import FeatureSqueezing
from guard.offline.detectors.kernel_density import KernelDensity, typical_distance
from guard.offline.detectors.mahalanobis import Mahalanobis, fit_metric
from guard.offline.detectors.saliency_classifier import SaliencyClassifier
from guard.offline.detectors.weights import item_weights
from guard.offline.evidence.needs import DenoisedLogits, Evidence, Image, Latent, Logits
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


def examples(z: Tensor, labels: Tensor) -> Examples:
    clean: Evidence = {TAP: z, Logits(): sure_of(labels), Image(): z}
    nothing: Evidence = {need: value[:0] for need, value in clean.items()}
    return Examples(clean, labels, nothing, nothing, (), seed=0)


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


def test_mahalanobis_to_the_nearest_class_does_not_ask_the_model() -> None:
    z, labels = latents()
    head = Mahalanobis((TAP,), centre="nearest").fit(examples(z, labels))
    assert torch.equal(
        head({TAP: z, Logits(): sure_of(labels)}), head({TAP: z, Logits(): sure_of((labels + 1) % CLASSES)})
    )


def test_the_median_clean_item_has_distance_one() -> None:
    z, labels = latents()
    metric = fit_metric(z, labels, CLASSES, shrinkage=0.01)
    assert float(metric(z)[torch.arange(len(z)), labels].median()) == pytest.approx(1.0)


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
    kept = (head.references.T + head.middle) / head.scale
    assert len(kept) == min(references, 90)
    classes = (head.penalty < 1e5).float().argmax(dim=0)
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


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_saliency_classifier_learns(kind: str) -> None:
    have = fitted("images" if kind == "images" else "vectors")
    head = have.heads["saliency_classifier"]
    with torch.no_grad():
        clean, attacked = head(have.clean), head(have.attacked)
    assert ((clean < 0).float().mean() + (attacked > 0).float().mean()) / 2 > 0.75


def test_saliency_classifier_sees_the_gradients_size_as_well_as_its_form() -> None:
    have = fitted("images")
    detector = have.detectors["saliency_classifier"]
    assert isinstance(detector, SaliencyClassifier)
    larger = {**have.clean, detector.gradient: 100 * have.clean[detector.gradient]}
    turned = {**have.clean, detector.gradient: -have.clean[detector.gradient]}
    with torch.no_grad():
        scores = [have.heads["saliency_classifier"](items) for items in (have.clean, larger, turned)]
    assert all(float((other - scores[0]).abs().mean()) > 0.1 * float(scores[0].std()) for other in scores[1:])


def test_families_weigh_the_same_and_noise_a_quarter_of_the_negatives() -> None:
    weights = item_weights(240, 240, ("a",) * 200 + ("b",) * 40)
    clean, noisy, attacked = weights.split(240)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(attacked[:200].sum()) == pytest.approx(float(attacked[200:].sum()), rel=1e-4)
    assert float(attacked.sum()) == pytest.approx(float(clean.sum() + noisy.sum()), rel=1e-4)
    assert float(noisy.sum()) == pytest.approx(float(clean.sum()) / 3, rel=1e-4)


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
