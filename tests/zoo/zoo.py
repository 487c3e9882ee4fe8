"""The zoo: architectures of image classifiers by name, small and with random weights, for 3x32x32 images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from tests import networks
from tests.zoo import branches, mixers, mobile, plain, residual, series, windows
from tests.zoo.parts import seeded

SHAPE = (3, 32, 32)
BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet": plain.alexnet,
    "vgg": plain.vgg,
    "squeezenet": plain.squeezenet,
    "googlenet": branches.googlenet,
    "inception": branches.inception,
    "densenet": branches.densenet,
    "resnet": residual.resnet,
    "regnet": residual.regnet,
    "mobilenet_v2": mobile.mobilenet_v2,
    "mobilenet_v3": mobile.mobilenet_v3,
    "mnasnet": mobile.mnasnet,
    "efficientnet": mobile.efficientnet,
    "shufflenet": mobile.shufflenet,
    "convnext": mixers.convnext,
    "poolformer": mixers.poolformer,
    "mlp_mixer": mixers.mlp_mixer,
    "vit": networks.vit,
    "swin": windows.swin,
    "lstm": series.lstm,
    "gru": series.gru,
    "elman": series.elman,
    "convolutions_1d": series.convolutions_1d,
}


def build(name: str) -> nn.Module:
    """The network of that name, in evaluation mode, without parameter gradients."""
    return seeded(BUILDERS[name])
