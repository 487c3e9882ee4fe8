"""Image classifiers of the packages `pytorchcv` and `vit_pytorch`, with random weights; nothing is downloaded.

Rule 1: a network here is the package's own code. Of those made for 224x224 pixels the last pool is made to take any
size, as their own later versions do; the package's `__init__`, which asks for torchvision, is passed by.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from tests.side import SIDE, reach
from tests.zoo.parts import seeded

CLASSES = 10
SHELF = "models"
# The file of pytorchcv -> the network, at its true size. The first take 32x32 pixels, the others 64x64.
OF_CIFAR = {
    "nin_cifar": "nin_cifar10",
    "preresnet_cifar": "preresnet20_cifar10",
    "seresnet_cifar": "seresnet20_cifar10",
    "densenet_cifar": "densenet40_k12_cifar10",
    "diaresnet_cifar": "diaresnet20_cifar10",
    "shakeshakeresnet_cifar": "shakeshakeresnet20_2x16d_cifar10",
    "xdensenet_cifar": "xdensenet40_2_k24_bc_cifar10",
}
OF_IMAGENET = {
    "ghostnet": "ghostnet",
    "mixnet": "mixnet_s",
    "vovnet": "vovnet27s",
    "hardnet": "hardnet39ds",
    "dla": "dla46c",
    "cbamresnet": "cbam_resnet18",
    "peleenet": "peleenet",
    "squeezenext": "sqnxt23_w1",
    "octresnet": "octresnet10_ad2",
    "igcv3": "igcv3_wd4",
    "menet": "menet108_8x1_g3",
    "espnetv2": "espnetv2_wd2",
    "channelnet": "channelnet",
    "shufflenet": "shufflenet_g3_wd4",
}
HEADS = {"heads": 3, "dim_head": 8}
PATCHES = {"image_size": 32, "patch_size": 8, "num_classes": CLASSES, "dim": 24, "mlp_dim": 48, **HEADS}
# The file of vit_pytorch -> the class and the settings that make it small.
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "simple_vit": ("SimpleViT", {**PATCHES, "depth": 2}),
    "cait": ("CaiT", {**PATCHES, "depth": 2, "cls_depth": 1}),
    "deepvit": ("DeepViT", {**PATCHES, "depth": 2}),
    "pit": ("PiT", {**PATCHES, "depth": (1, 1)}),
    "rvt": ("RvT", {**PATCHES, "depth": 2}),
    "xcit": ("XCiT", {**PATCHES, "depth": 2, "cls_depth": 1}),
    "nest": (
        "NesT",
        {
            "image_size": 32,
            "patch_size": 4,
            "dim": 12,
            "heads": 3,
            "num_hierarchies": 2,
            "block_repeats": (1, 1),
            "num_classes": CLASSES,
        },
    ),
    "cct": (
        "CCT",
        {
            "img_size": 32,
            "embedding_dim": 24,
            "n_input_channels": 3,
            "num_layers": 2,
            "num_heads": 3,
            "num_classes": CLASSES,
            "n_conv_layers": 1,
            "positional_embedding": "learnable",
        },
    ),
    "max_vit": (
        "MaxViT",
        {"num_classes": CLASSES, "dim_conv_stem": 8, "dim": 8, "dim_head": 8, "depth": (1, 1), "window_size": 4},
    ),
    "t2t": (
        "T2TViT",
        {
            "image_size": 32,
            "num_classes": CLASSES,
            "dim": 24,
            "depth": 2,
            "mlp_dim": 48,
            **HEADS,
            "t2t_layers": ((3, 2), (3, 2)),
        },
    ),
    "regionvit": (
        "RegionViT",
        {"dim": (8, 12, 16, 24), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": CLASSES},
    ),
    "cross_vit": (
        "CrossViT",
        {
            "image_size": 32,
            "num_classes": CLASSES,
            "depth": 1,
            "cross_attn_depth": 1,
            "cross_attn_heads": 2,
            "cross_attn_dim_head": 8,
            **{
                f"{size}_{key}": value
                for size, dim, patch in (("sm", 12, 4), ("lg", 24, 8))
                for key, value in {
                    "dim": dim,
                    "patch_size": patch,
                    "enc_depth": 1,
                    "enc_heads": 2,
                    "enc_mlp_dim": 2 * dim,
                    "enc_dim_head": 8,
                }.items()
            },
        },
    ),
    "scalable_vit": (
        "ScalableViT",
        {
            "num_classes": CLASSES,
            "dim": 8,
            "heads": (1, 2),
            "depth": (1, 1),
            "ssa_dim_key": (8, 8),
            "reduction_factor": (4, 2),
            "window_size": (4, None),
        },
    ),
    "levit": (
        "LeViT",
        {
            "image_size": 64,
            "num_classes": CLASSES,
            "stages": 2,
            "dim": (16, 24),
            "depth": 1,
            "heads": (2, 2),
            "mlp_mult": 2,
        },
    ),
}
LARGER = ("regionvit", "levit")  # 64x64 pixels


def builders() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """The networks by name, each with what builds it and the shape of an item."""
    small, large = (3, 32, 32), (3, 64, 64)
    return {
        **{name: (partial(convolutional, file, name), small) for file, name in OF_CIFAR.items()},
        **{name: (partial(convolutional, file, name), large) for file, name in OF_IMAGENET.items()},
        **{f"vit_pytorch {kind}": (partial(transformer, file, kind, settings), large if file in LARGER else small)
           for file, (kind, settings) in TRANSFORMERS.items()},
    }  # fmt: skip


def convolutional(file: str, name: str) -> nn.Module:
    """Raises StaleError where the package is missing."""
    reach(SHELF)
    factory = getattr(importlib.import_module(f"pytorchcv.models.{file}"), name)
    if file.endswith("_cifar"):
        return seeded(factory)
    network = seeded(partial(factory, in_size=(64, 64), num_classes=CLASSES))
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return network


def transformer(file: str, kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """Raises StaleError where the package is missing."""
    reach(SHELF)
    if "vit_pytorch" not in sys.modules:
        package = ModuleType("vit_pytorch")
        package.__path__ = [str(SIDE / SHELF / "vit_pytorch")]
        sys.modules["vit_pytorch"] = package
    return seeded(partial(getattr(importlib.import_module(f"vit_pytorch.{file}"), kind), **settings))
