"""Table of detectors, written out. A detector listed here is tested by being listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guard.errors import ConfigError
from guard.offline.data.setting_bounds import check_number
from guard.offline.detectors.attribute_steering import attribute_steering
from guard.offline.detectors.bayesian_uncertainty import bayesian_uncertainty
from guard.offline.detectors.binary_classifier import binary_classifier
from guard.offline.detectors.deep_knn import deep_knn
from guard.offline.detectors.detector import Detector
from guard.offline.detectors.detector_subnetwork import detector_subnetwork
from guard.offline.detectors.feature_denoising import feature_denoising
from guard.offline.detectors.feature_squeezing import feature_squeezing
from guard.offline.detectors.gradient_direction import gradient_direction
from guard.offline.detectors.kernel_density import kernel_density
from guard.offline.detectors.layer_regression import layer_regression
from guard.offline.detectors.lid import lid
from guard.offline.detectors.magnet import magnet
from guard.offline.detectors.mahalanobis import mahalanobis
from guard.offline.detectors.mask_classifier import mask_classifier
from guard.offline.detectors.ml_loo import ml_loo
from guard.offline.detectors.outlier_class import outlier_class
from guard.offline.detectors.region_vote import region_vote
from guard.offline.detectors.safetynet import safetynet
from guard.offline.detectors.saliency_classifier import saliency_classifier
from guard.offline.detectors.second_entropy import second_entropy
from guard.offline.detectors.second_opinion import second_opinion
from guard.offline.detectors.shap_signature import shap_signature
from guard.offline.detectors.summary_classifier import summary_classifier
from guard.offline.detectors.x_ensemble import x_ensemble

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
    "second_opinion": second_opinion,
    "second_entropy": second_entropy,
    "ml_loo": ml_loo,
    "magnet": magnet,
    "deep_knn": deep_knn,
    "layer_regression": layer_regression,
    "bayesian_uncertainty": bayesian_uncertainty,
    "region_vote": region_vote,
    "outlier_class": outlier_class,
    "binary_classifier": binary_classifier,
    "safetynet": safetynet,
    "shap_signature": shap_signature,
    "x_ensemble": x_ensemble,
    "mask_classifier": mask_classifier,
    "detector_subnetwork": detector_subnetwork,
    "feature_denoising": feature_denoising,
}

# Detectors whose opinion does not come from the weights that are attacked: a share of the rate is kept for them
INDEPENDENT = frozenset({"second_opinion"})

# Settings with which a detector asks for less: a choice by cost tries them, too
LESS_EVIDENCE: Mapping[str, Mapping[str, Any]] = {"summary_classifier": {"gradient": False}}


def build_detector(name: str, taps: Sequence[str], settings: Mapping[str, Any]) -> Detector:
    """Build a detector by its name. Raises ConfigError for one, or a setting, that does not exist or has no meaning."""
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    try:
        for setting, value in settings.items():
            check_number(setting, value)
        return DETECTORS[name](taps, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"detector {name!r}: {error}") from error
