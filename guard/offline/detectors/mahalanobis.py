"""Mahalanobis distance from the latents to the centre of the predicted class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.logistic import Logistic, fit_logistic
from guard.offline.detectors.parts.settings import one_of
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence

# Items of a class that have a mean of their own; fewer say more about themselves than about their class
MIN_CLASS_ITEMS = 3
NOISE_COVARIANCE_SHARE = 0.5  # of the shared covariance: what noisy items give, where there are any
Centre = Literal["predicted", "nearest"]


@dataclass(frozen=True)
class Mahalanobis:
    """Detector that scores how far the latents are from the predicted class, in the metric that the classes share.

    Each tap's distance is divided by its clean median; the score weighs the logarithms of all by a logistic regression
    on attacked items, or is their mean where there are none. Harmless noise is part of the metric: a direction in which
    it moves latents counts for less.

    Source: Lee et al. 2018, arXiv:1807.03888, eq. 2. They take the nearest class at every layer (`centre="nearest"`);
    early layers of an attacked input still look like its true class, so the predicted one tells more. Their input
    perturbation is left out: it costs a second backward. Their covariance is of clean items alone.
    """

    name: ClassVar[str] = "mahalanobis"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    latents: tuple[Latent, ...]
    shrinkage: float = 0.01  # share of the covariance replaced by a scaled identity
    centre: Centre = "predicted"

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (*self.latents, Logits())

    def fit(self, examples: Examples) -> MahalanobisHead:
        classes = examples.clean[Logits()].shape[1]
        named = examples.noisy[Logits()].argmax(dim=1)
        metrics = [
            fit_metric(
                examples.clean[latent], examples.labels, classes, self.shrinkage, Noisy(examples.noisy[latent], named)
            )
            for latent in self.latents
        ]
        plain = MahalanobisHead(self, metrics, Logistic.mean(len(metrics)))
        clean, noisy = plain.distances(examples.clean), plain.distances(examples.noisy)
        attacked = examples.attacked.seen_as(plain.distances(examples.attacked.items))
        return MahalanobisHead(self, metrics, fit_logistic(clean, noisy, attacked))

    def restore(self, state: Mapping[str, Tensor]) -> MahalanobisHead:
        parts = [f"metrics.{i}." for i in range(len(self.latents))]
        metrics = [Metric(state[p + "whiten"], state[p + "centres"]) for p in parts]
        head = MahalanobisHead(self, metrics, Logistic.mean(len(metrics)))
        head.load_state_dict(dict(state))
        return head


class Metric(nn.Module):
    """Squared distance [item] to a class centre, in units of its clean median."""

    def __init__(self, whiten: Tensor, centres: Tensor) -> None:
        super().__init__()
        self.register_buffer("whiten", whiten)  # [feature, feature]
        self.register_buffer("centres", centres)  # [class, feature]
        self.register_buffer("scale", torch.ones(()))
        self.whiten: Tensor
        self.centres: Tensor
        self.scale: Tensor

    def forward(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Return the distance of latents [item, feature] to the centre of each item's class [item]."""
        return self.away(latent, classes).square().sum(dim=1) / self.scale

    def away(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Return the whitened way [item, feature] from each item's class: whitened apart they would round far more."""
        return (latent - embedding(classes, self.centres)) @ self.whiten

    def nearest(self, latent: Tensor) -> Tensor:
        """Return the class [item] whose centre is nearest."""
        middle = self.centres.mean(dim=0)
        centres, z = (self.centres - middle) @ self.whiten, (latent - middle) @ self.whiten
        nearest: Tensor = (z[:, None, :] - centres[None]).square().sum(dim=2).argmin(dim=1)
        return nearest


class MahalanobisHead(Head):
    def __init__(self, detector: Mahalanobis, metrics: list[Metric], weighing: Logistic) -> None:
        super().__init__(detector)
        self.latents, self.centre = detector.latents, detector.centre
        self.metrics = nn.ModuleList(metrics)
        self.weighing = weighing

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked", or without attacks the mean log distance [item]; larger is suspicious."""
        score: Tensor = self.weighing(self.distances(evidence))
        return score

    def distances(self, evidence: Evidence) -> Tensor:
        """Return the logarithm of the squared distance at each tap [item, tap], in units of its clean median."""
        metrics = [metric for metric in self.metrics if isinstance(metric, Metric)]
        pairs = [(metric, evidence[latent]) for metric, latent in zip(metrics, self.latents, strict=True)]
        named = evidence[Logits()].argmax(dim=1)
        away = [m.away(z, m.nearest(z) if self.centre == "nearest" else named) for m, z in pairs]
        # Squared and added up together, by a constant of the program: few operators serve all taps.
        taps = torch.block_diag(*(torch.ones_like(m.centres[0])[:, None] / m.scale for m in metrics))  # [feature, tap]
        distances: Tensor = torch.cat(away, dim=1).square() @ taps
        return (1e-6 + distances).log()


class Noisy(NamedTuple):
    """Latents of clean items with harmless noise, and the classes that the model names for them."""

    latents: Tensor  # [item, feature]
    named: Tensor  # [item]


def fit_metric(z: Tensor, labels: Tensor, classes: int, shrinkage: float, noisy: Noisy | None = None) -> Metric:
    """Fit class centres to clean latents [item, feature], and the shared covariance to them and to noisy ones.

    A class of few items gets the mean of all. Raises DataError for fewer than two items.
    """
    if len(z) < 2:
        raise DataError(f"mahalanobis needs at least two clean items, got {len(z)}")
    members = nn.functional.one_hot(labels, classes).to(z.dtype)  # [item, class]
    counts = members.sum(dim=0)[:, None]
    middle = z.mean(dim=0)
    centred = z - middle
    own = members.T @ centred / counts.clamp_min(1.0)
    centres = torch.where(counts >= MIN_CLASS_ITEMS, own, centred.mean(dim=0))  # [class, feature]
    covariance = second_moments(centred - centres[labels])
    if noisy is not None and len(noisy.named):
        moved = second_moments(noisy.latents - middle - centres[noisy.named])
        covariance = (1 - NOISE_COVARIANCE_SHARE) * covariance + NOISE_COVARIANCE_SHARE * moved
    whiten = inverse_root(covariance, shrinkage).to(z.dtype)
    metric = Metric(whiten, middle + centres)
    metric.scale.copy_(metric(z, labels).median().clamp_min(1e-6))
    return metric


def second_moments(residual: Tensor) -> Tensor:
    """Return the mean products [feature, feature] of residuals [item, feature], in double precision."""
    exact = residual.double()
    return exact.T @ exact / len(exact)


def inverse_root(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return C^(-1/2) of the shrunk covariance [feature, feature]; directions without variance keep a floor."""
    size = len(covariance)
    level = (covariance.diagonal().mean()).clamp_min(1e-8)
    shrunk = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(size, dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(shrunk)
    root: Tensor = vectors @ torch.diag(values.clamp_min(1e-8).rsqrt()) @ vectors.T
    return root


def mahalanobis(taps: Sequence[str], *, shrinkage: float = 0.01, centre: Centre = "predicted") -> Detector:
    one_of("centre", centre, Centre)
    return Mahalanobis(tuple(Latent(tap) for tap in taps), shrinkage, centre)
