"""Classifiers of scikit-learn on vectors, exported by skl2onnx, each beside its twin in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from tests.side import reach
from tests.zoo.exports import ANY, ONE, Form
from tests.zoo.fitting import FIT_ITEMS, Pictures, accuracy

FEATURES = 64
SKL2ONNX = "skl2onnx"
FORMS = (Form(SKL2ONNX, ONE), Form(SKL2ONNX, ANY))
OPTIONS = ("--output", "probabilities", "--output-name", "probabilities")
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


class Twin(nn.Module):
    """What an estimator computes before its softmax, in torch."""

    def __init__(self, estimator: ClassifierMixin) -> None:
        super().__init__()
        self.estimator = estimator
        self.layers = nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.layers(vectors)
        return logits


def vectors() -> tuple[Pictures, Pictures]:
    """The digits as vectors from 0 to 1, [item, feature]: to fit on, and to guard with."""
    found = load_digits()
    grain = np.random.default_rng(0).normal(0, 0.02, found.data.shape)
    values = (found.data / 16 + grain).clip(0, 1).astype(np.float32)
    labels = found.target.astype(np.int64)
    parts = (slice(0, FIT_ITEMS), slice(FIT_ITEMS, 2 * FIT_ITEMS))
    first, second = (Pictures(values[part], labels[part]) for part in parts)
    return first, second


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "logistic regression": partial(LogisticRegression, max_iter=1000),
    "scaler and logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "scaler and MLP": lambda: make_pipeline(StandardScaler(), MLPClassifier((24,), max_iter=200, random_state=0)),
    "MLP, tanh": partial(MLPClassifier, (24, 16), activation="tanh", max_iter=300, random_state=0),
}


def build(name: str) -> Twin:
    return Twin(ESTIMATORS[name]())


def fit(network: Twin, pictures: Pictures, held_out: Pictures) -> float:
    """Fit the estimator, and give its twin the parameters; the share of held-out items that the twin has right."""
    network.estimator.fit(pictures.images, pictures.labels)
    steps = [step for _, step in getattr(network.estimator, "steps", [("", network.estimator)])]
    network.layers = nn.Sequential(*(part for step in steps for part in twins(step))).float().eval()
    network.requires_grad_(False)
    return accuracy(network, held_out)


def twins(step: Any) -> list[nn.Module]:
    """A step of a pipeline as layers."""
    if isinstance(step, StandardScaler):
        scale = 1 / step.scale_
        return [linear(np.diag(scale), -step.mean_ * scale)]
    if isinstance(step, LogisticRegression):
        return [linear(step.coef_, step.intercept_)]
    layers: list[nn.Module] = []
    for weight, bias in zip(step.coefs_, step.intercepts_, strict=True):
        layers += [linear(weight.T, bias), ACTIVATIONS[step.activation]()]
    return layers[:-1]


def linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(torch.from_numpy(np.asarray(weight)))
    layer.bias = nn.Parameter(torch.from_numpy(np.asarray(bias)))
    return layer


def write(network: Twin, _shape: tuple[int, ...], form: Form, file: Path) -> None:
    """Export an estimator. Raises StaleError where the package is missing."""
    reach("models")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    kind = FloatTensorType([1 if form.batch == ONE else None, FEATURES])
    model = to_onnx(network.estimator, initial_types=[("input", kind)], options={"zipmap": False})
    file.write_bytes(model.SerializeToString())
