"""Image classifiers of the package `transformers`, each from a small configuration; nothing is downloaded.

Rule 1: a network here is the package's own code with random weights; only sizes are ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tests.side import reach
from tests.zoo.parts import seeded

CLASSES = 10
SHARED = {"num_labels": CLASSES, "num_channels": 3}
PATCHES = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
TRANSFORMER = {**PATCHES, "intermediate_size": 48}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4}
STAGES = {"depths": [1, 1, 1], "hidden_sizes": [12, 16, 24]}
# The package's prefix -> the settings that make it small.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ViT": TRANSFORMER,
    "DeiT": TRANSFORMER,
    "Beit": {**TRANSFORMER, "use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "Data2VecVision": {**TRANSFORMER, "use_shared_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "ViTMSN": TRANSFORMER,
    "IJepa": TRANSFORMER,
    "Dinov2": {**PATCHES, "mlp_ratio": 2, "use_swiglu_ffn": True},
    "Dinov2WithRegisters": {**PATCHES, "mlp_ratio": 2},
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "DonutSwin": WINDOWS,
    "ConvNext": {**STAGES, "patch_size": 4, "num_stages": 3, "layer_scale_init_value": 0.5},
    "ConvNextV2": {**STAGES, "patch_size": 4, "num_stages": 3},
    "ResNet": {**STAGES, "embedding_size": 8, "layer_type": "bottleneck", "num_stages": 3},
    "RegNet": {
        "embedding_size": 8,
        "hidden_sizes": [12, 24],
        "depths": [1, 2],
        "groups_width": 6,
        "layer_type": "y",
        "num_stages": 2,
    },
    "Bit": {
        **STAGES,
        "embedding_size": 8,
        "hidden_sizes": [32, 64, 64],
        "num_groups": 8,
        "layer_type": "preactivation",
    },
    "MobileNetV1": {"depth_multiplier": 0.25, "min_depth": 8, "image_size": 32, "classifier_dropout_prob": 0.0},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32, "classifier_dropout_prob": 0.0},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "image_size": 32, "hidden_dim": 320},
    "PoolFormer": {
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 1, 1, 1],
        "patch_sizes": [3, 3, 3, 3],
        "strides": [2, 2, 2, 1],
        "padding": [1, 1, 1, 1],
        "layer_scale_init_value": 0.5,
    },
    "Levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "mlp_ratio": [2, 2, 2],
    },
    "Segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [12, 24],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 24,
    },
    "MobileViT": {
        "image_size": 32,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 48],
        "num_attention_heads": 2,
        "output_stride": 32,
    },
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "Cvt": {"embed_dim": [12, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "Pvt": {
        "image_size": 32,
        "num_encoder_blocks": 4,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 12, 16, 24],
        "num_attention_heads": [1, 2, 2, 3],
        "sequence_reduction_ratios": [4, 2, 1, 1],
        "patch_sizes": [4, 2, 2, 1],
        "strides": [4, 2, 2, 1],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "PvtV2": {
        "image_size": 32,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 12, 16, 24],
        "num_attention_heads": [1, 2, 2, 3],
        "sr_ratios": [4, 2, 1, 1],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "FocalNet": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 12,
        "hidden_sizes": [12, 24],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "SwiftFormer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [12, 16, 24, 32]},
    "Hiera": {
        "image_size": [32, 32],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "embed_dim": 12,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "mlp_ratio": 2.0,
        "num_query_pool": 1,
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
    },
    "HGNetV2": {
        "embedding_size": 8,
        "hidden_sizes": [12, 16],
        "depths": [1, 1],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 12],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [12, 16],
        "stage_num_blocks": [1, 1],
        "stage_numb_of_layers": [2, 2],
        "stage_downsample": [False, True],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 5],
    },
}
SHAPES = {"Levit": (3, 64, 64), "MobileViTV2": (3, 64, 64), "SwiftFormer": (3, 64, 64)}


class Logits(nn.Module):
    """A network of the package with its logits as the only output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def redrawn(network: nn.Module) -> nn.Module:
    """The network with weights that keep an image's size from layer to layer; the package's are a fraction of that."""
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
    return network


def builder(prefix: str) -> Callable[[], nn.Module]:
    """The function that builds the network of that prefix; it raises StaleError where the package is missing."""

    def build() -> nn.Module:
        os.environ["HF_HUB_OFFLINE"] = "1"
        reach("models")
        import transformers

        def made() -> nn.Module:
            config = getattr(transformers, f"{prefix}Config")(**SHARED, **SETTINGS[prefix])
            return Logits(redrawn(getattr(transformers, f"{prefix}ForImageClassification")(config)))

        return seeded(made)

    return build
