"""The models of the zoo's benchmark: what builds each, what fits it, and in which forms it is exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tests.zoo import cv, exports, fitting, hub, keras, tabular, zoo
from tests.zoo.exports import FORMS, Form
from tests.zoo.fitting import Pictures

# What is made of the same layers, in the same order -> the model that is trained for both.
ALIKE = {
    "transformers DeiT": "transformers ViT",
    "transformers ViTMSN": "transformers ViT",
    "transformers IJepa": "transformers ViT",
    "vit_pytorch SimpleViT": "transformers ViT",
    "vit": "transformers ViT",
    "transformers Data2VecVision": "transformers Beit",
    "transformers Dinov2WithRegisters": "transformers Dinov2",
    "transformers DonutSwin": "transformers Swin",
    "swin": "transformers Swin",
    "transformers Pvt": "transformers PvtV2",
    "vit_pytorch DeepViT": "vit_pytorch CaiT",
    "convnext": "transformers ConvNext",
    "poolformer": "transformers PoolFormer",
    "resnet": "transformers ResNet",
    "regnet": "transformers RegNet",
    "efficientnet": "transformers EfficientNet",
    "mobilenet_v2": "transformers MobileNetV2",
    "mnasnet": "transformers MobileNetV2",
    "inception": "googlenet",
    "densenet": "densenet40_k12_cifar10",
    "xdensenet40_2_k24_bc_cifar10": "densenet40_k12_cifar10",
    "preresnet20_cifar10": "seresnet20_cifar10",
    "scaler and logistic regression": "logistic regression",
}


@dataclass(frozen=True)
class Entry:
    """A model: its network maps items [channel, height, width] or [feature] in 0 to 1 to logits."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[], Any]
    fit: Callable[[Any, Pictures, Pictures], float] = fitting.fitted
    write: Callable[[Any, tuple[int, ...], Form, Path], None] = exports.write
    forms: tuple[Form, ...] = FORMS
    options: tuple[str, ...] = ()  # of `guard train`

    @property
    def is_vectors(self) -> bool:
        return len(self.shape) == 1

    @property
    def is_trained(self) -> bool:
        """Whether guards are trained for it; of what is alike one is."""
        return self.name not in ALIKE

    def pictures(self) -> tuple[Pictures, Pictures]:
        """Items to fit the model on, and to guard it with."""
        return tabular.vectors() if self.is_vectors else fitting.digits(self.shape[1], self.shape[0])


def entries() -> dict[str, Entry]:
    """Every entry by name, in the order in which they are tried."""
    made = [
        *(Entry(name, zoo.SHAPE, partial(zoo.build, name)) for name in zoo.BUILDERS),
        *(of_hub(prefix) for prefix in hub.SETTINGS),
        *(Entry(name, shape, build) for name, (build, shape) in cv.builders().items()),
        *(of_estimator(name) for name in tabular.ESTIMATORS),
        *(of_keras(name) for name in keras.NAMES),
    ]
    return {entry.name: entry for entry in made}


def of_hub(prefix: str) -> Entry:
    build: Callable[[], nn.Module] = hub.builder(prefix)
    return Entry(f"transformers {prefix}", hub.SHAPES.get(prefix, zoo.SHAPE), build)


def of_estimator(name: str) -> Entry:
    build = partial(tabular.build, name)
    return Entry(name, (tabular.FEATURES,), build, tabular.fit, tabular.write, tabular.FORMS, tabular.OPTIONS)


def of_keras(name: str) -> Entry:
    return Entry(f"Keras {name}", zoo.SHAPE, partial(keras.build, name), keras.fit, keras.write, keras.FORMS)
