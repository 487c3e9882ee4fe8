"""Networks of Keras 3 on its torch backend, built from its own layers and applications; no weights are downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.side import reach
from tests.zoo.exports import LAST, Form
from tests.zoo.fitting import MIN_ACCURACY_SHARE, Pictures, accuracy

CLASSES, SIZE_PIXELS = 10, 32
KERAS, ONE_LAST = "keras", "fixed 1, NHWC"
FORMS = (Form(KERAS, LAST), Form(KERAS, ONE_LAST))
EPOCHS = 8
NAMES = ("convolutions", "separable", "MobileNet", "MobileNetV2", "ResNet50V2 cut", "attention")


class Turned(nn.Module):
    """A Keras model for items [channel, height, width]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.permute(0, 2, 3, 1))
        return logits


def build(name: str) -> Turned:
    """Raises StaleError where the package is missing."""
    os.environ["KERAS_BACKEND"] = "torch"
    reach("keras")
    import keras

    keras.utils.set_random_seed(0)
    return Turned(MAKERS[name](keras))


def convolutions(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential([
        layers.Input((SIZE_PIXELS, SIZE_PIXELS, 3)),
        layers.Rescaling(2.0, offset=-1.0), layers.Conv2D(12, 3, strides=2, padding="same", activation="relu"),
        layers.BatchNormalization(), layers.MaxPooling2D(3, 2, padding="same"),
        layers.Conv2D(24, 3, padding="same"), layers.LeakyReLU(), layers.AveragePooling2D(2), layers.Flatten(),
        layers.Dropout(0.2), layers.Dense(32, activation="elu"), layers.Dense(CLASSES),
    ])  # fmt: skip


def separable(keras: Any) -> Any:
    layers = keras.layers
    images = layers.Input((SIZE_PIXELS, SIZE_PIXELS, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="swish")(images)
    y = layers.SeparableConv2D(16, 3, padding="same")(x)
    y = layers.GroupNormalization(4)(y)
    x = layers.Add()([x, layers.Activation("gelu")(y)])
    gate = layers.Dense(16, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(layers.Multiply()([x, gate]))
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu6")(x)
    return keras.Model(images, layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(x)))


def attention(keras: Any) -> Any:
    layers = keras.layers
    images = layers.Input((SIZE_PIXELS, SIZE_PIXELS, 3))
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 8, strides=8)(images))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 12)(x, x)])
    x = layers.Add()([x, layers.Dense(24)(layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x)))])
    return keras.Model(images, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))))


def mobilenet(keras: Any) -> Any:
    return keras.applications.MobileNet(
        (SIZE_PIXELS, SIZE_PIXELS, 3), alpha=0.25, weights=None, classes=CLASSES, classifier_activation=None
    )


def mobilenet_v2(keras: Any) -> Any:
    return keras.applications.MobileNetV2(
        (SIZE_PIXELS, SIZE_PIXELS, 3), alpha=0.35, weights=None, classes=CLASSES, classifier_activation=None
    )


def resnet_cut(keras: Any) -> Any:
    """The first two stages of ResNet50V2."""
    whole = keras.applications.ResNet50V2(include_top=False, weights=None, input_shape=(SIZE_PIXELS, SIZE_PIXELS, 3))
    x = keras.layers.GlobalAveragePooling2D()(whole.get_layer("conv2_block2_out").output)
    return keras.Model(whole.input, keras.layers.Dense(CLASSES)(x))


MAKERS: dict[str, Callable[[Any], Any]] = dict(
    zip(NAMES, (convolutions, separable, mobilenet, mobilenet_v2, resnet_cut, attention), strict=True)
)


def fit(network: Turned, pictures: Pictures, held_out: Pictures) -> float:
    """Train by Keras' own loop; the share of held-out pictures that the network has right."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    images = pictures.unit.permute(0, 2, 3, 1).contiguous().numpy()
    right = 0.0
    for _ in range(3):
        network.model.fit(images, pictures.labels, batch_size=50, epochs=EPOCHS, verbose=0)
        right = accuracy(network.eval(), held_out)
        if right >= MIN_ACCURACY_SHARE:
            break
    network.requires_grad_(False)
    return right


def write(network: Turned, _shape: tuple[int, ...], form: Form, file: Path) -> None:
    import keras

    items = 1 if form.batch == ONE_LAST else None
    signature = [keras.InputSpec(shape=(items, SIZE_PIXELS, SIZE_PIXELS, 3), dtype="float32", name="input")]
    network.model.export(str(file), format="onnx", input_signature=signature, verbose=False)
