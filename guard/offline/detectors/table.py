"""The table of detectors, written out. A detector listed here is tested by being listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from guard.errors import ConfigError
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.table import DENOISERS
from guard.offline.detectors.attribute_steering import AttributeSteering
from guard.offline.detectors.detector import Detector
from guard.offline.detectors.feature_squeezing import FeatureSqueezing
from guard.offline.detectors.gradient_direction import GradientDirection
from guard.offline.detectors.kernel_density import KernelDensity
from guard.offline.detectors.lid import Lid
from guard.offline.detectors.mahalanobis import Centre, Mahalanobis
from guard.offline.detectors.saliency_classifier import Map, SaliencyClassifier
from guard.offline.detectors.summary_classifier import SummaryClassifier
from guard.offline.evidence.needs import InputGradient, Latent, Noise, NoisedGradients, Objective


def mahalanobis(taps: Sequence[str], *, shrinkage: float = 0.01, centre: Centre = "predicted") -> Detector:
    one_of("centre", centre, Centre)
    return Mahalanobis(tuple(Latent(tap) for tap in taps), shrinkage, centre)


def kernel_density(taps: Sequence[str], *, bandwidth: float = 0.5, references: int = 1000) -> Detector:
    return KernelDensity(Latent(taps[-1]), bandwidth, references)


def feature_squeezing(taps: Sequence[str], *, squeezers: Sequence[Mapping[str, Any]] | None = None) -> Detector:
    del taps
    return FeatureSqueezing() if squeezers is None else FeatureSqueezing(denoisers(squeezers))


def denoisers(entries: Sequence[Mapping[str, Any]]) -> tuple[Denoiser, ...]:
    return tuple(DENOISERS[e["name"]](**{k: v for k, v in e.items() if k != "name"}) for e in entries)


def summary_classifier(
    taps: Sequence[str],
    *,
    of: Objective = "margin",
    squeezers: Sequence[Mapping[str, Any]] | None = None,
    width: int = 64,
    epochs: int = 30,
    learning_rate: float = 5e-3,
) -> Detector:
    del taps
    one_of("of", of, Objective)
    asked = SummaryClassifier(InputGradient(of), width=width, epochs=epochs, learning_rate=learning_rate)
    return asked if squeezers is None else replace(asked, squeezers=denoisers(squeezers))


def saliency_classifier(
    taps: Sequence[str],
    *,
    map: Map = "gradient",
    of: Objective = "margin",
    noise: float = 0.02,
    rows: int = 4,
    width: int = 16,
    epochs: int = 12,
    learning_rate: float = 3e-3,
) -> Detector:
    """`noise` and `rows` are SmoothGrad's."""
    del taps
    one_of("map", map, Map)
    one_of("of", of, Objective)
    gradient = NoisedGradients(Noise(noise, rows), of) if map == "smoothgrad" else InputGradient(of)
    return SaliencyClassifier(gradient, map, width, epochs, learning_rate)


def lid(taps: Sequence[str], *, neighbours: int = 20, references: int = 1000) -> Detector:
    return Lid(tuple(Latent(tap) for tap in taps), neighbours, references)


def gradient_direction(
    taps: Sequence[str], *, of: Objective = "margin", noise: float = 0.02, rows: int = 1, seed: int = 0
) -> Detector:
    del taps
    one_of("of", of, Objective)
    return GradientDirection(NoisedGradients(Noise(noise, rows, seed), of))


def attribute_steering(taps: Sequence[str], *, steered: Sequence[str] | None = None, share: float = 0.25) -> Detector:
    """`steered` are the taps that are steered, in the order of the forward pass; all unless given."""
    return AttributeSteering(tuple(taps if steered is None else steered), share)


def one_of(name: str, value: object, kind: Any) -> None:
    """Raises ValueError for what is none of a Literal's values."""
    if value not in get_args(kind):
        raise ValueError(f"{name} = {value!r}; wanted one of {', '.join(get_args(kind))}")


# name -> (taps of the model, settings of the recipe) -> detector
DETECTORS: Mapping[str, Callable[..., Detector]] = {
    "mahalanobis": mahalanobis,
    "kernel_density": kernel_density,
    "lid": lid,
    "saliency_classifier": saliency_classifier,
    "summary_classifier": summary_classifier,
    "gradient_direction": gradient_direction,
    "attribute_steering": attribute_steering,
    "feature_squeezing": feature_squeezing,
}


def build_detector(name: str, taps: Sequence[str], settings: Mapping[str, Any]) -> Detector:
    """Raises ConfigError for a detector or a setting that does not exist."""
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    try:
        return DETECTORS[name](taps, **settings)
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"detector {name!r}: {error}") from error
