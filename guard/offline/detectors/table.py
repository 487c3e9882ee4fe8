"""The table of detectors, written out. A detector listed here is tested by being listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from guard.errors import ConfigError
from guard.offline.denoisers.table import DENOISERS
from guard.offline.detectors.detector import Detector
from guard.offline.detectors.feature_squeezing import FeatureSqueezing
from guard.offline.detectors.kernel_density import KernelDensity
from guard.offline.detectors.mahalanobis import Centre, Mahalanobis
from guard.offline.detectors.saliency_classifier import SaliencyClassifier
from guard.offline.evidence.needs import InputGradient, Latent


def mahalanobis(taps: Sequence[str], *, shrinkage: float = 0.01, centre: Centre = "predicted") -> Detector:
    if centre not in get_args(Centre):
        raise ValueError(f"centre = {centre!r}; wanted one of {', '.join(get_args(Centre))}")
    return Mahalanobis(tuple(Latent(tap) for tap in taps), shrinkage, centre)


def kernel_density(taps: Sequence[str], *, bandwidth: float = 0.5, references: int = 1000) -> Detector:
    return KernelDensity(Latent(taps[-1]), bandwidth, references)


def feature_squeezing(taps: Sequence[str], *, squeezers: Sequence[Mapping[str, Any]] | None = None) -> Detector:
    del taps
    if squeezers is None:
        return FeatureSqueezing()
    return FeatureSqueezing(
        tuple(DENOISERS[s["name"]](**{k: v for k, v in s.items() if k != "name"}) for s in squeezers)
    )


def saliency_classifier(
    taps: Sequence[str], *, of: str = "logit", width: int = 16, epochs: int = 12, learning_rate: float = 3e-3
) -> Detector:
    del taps
    return SaliencyClassifier(InputGradient("margin" if of == "margin" else "logit"), width, epochs, learning_rate)


# name -> (taps of the model, settings of the recipe) -> detector
DETECTORS: Mapping[str, Callable[..., Detector]] = {
    "mahalanobis": mahalanobis,
    "kernel_density": kernel_density,
    "saliency_classifier": saliency_classifier,
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
