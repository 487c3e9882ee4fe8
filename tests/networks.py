"""Small classifiers for tests, a few lines each; parameters are random but the same every time."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export


def small_cnn(channels: int = 1, size: int = 8, classes: int = 10) -> nn.Module:
    """Two convolutions, a max-pool and a linear layer, as in the demo."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (size // 2) ** 2, classes),
        )  # fmt: skip
        return frozen(model)


def resnet20(classes: int = 10) -> nn.Module:
    """ResNet-20 for 3x32x32 images (He et al. 2015, arXiv:1512.03385, section 4.2, option B)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [_convolution(3, 16), nn.ReLU(inplace=True)]
        width = 16
        for stage in (16, 32, 64):
            for block in range(3):
                layers.append(Residual(width, stage, stride=2 if block == 0 and stage > 16 else 1))
                width = stage
        return frozen(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)))


def mobilenet(classes: int = 10) -> nn.Module:
    """Inverted residuals with ReLU6, then with hard-swish and squeeze-and-excitation, for 3x32x32 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [_convolution(3, 16), nn.ReLU6(inplace=True)]
        for before, after, stride in ((16, 24, 2), (24, 24, 1)):
            layers.append(Inverted(before, after, stride, nn.ReLU6(inplace=True), squeeze=False))
        for before, after, stride in ((24, 40, 2), (40, 40, 1), (40, 48, 1)):
            layers.append(Inverted(before, after, stride, nn.Hardswish(), squeeze=True))
        layers += [
            _convolution(48, 96, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, classes),
        ]
        return frozen(nn.Sequential(*layers))


def efficientnet(classes: int = 10) -> nn.Module:
    """Inverted residuals with SiLU and squeeze-and-excitation, for 3x32x32 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [_convolution(3, 16, stride=2), nn.SiLU()]
        for before, after, stride in ((16, 24, 2), (24, 24, 1), (24, 32, 2)):
            layers.append(Inverted(before, after, stride, nn.SiLU(), squeeze=True, gate=nn.Sigmoid()))
        layers += [_convolution(32, 64, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
        return frozen(nn.Sequential(*layers))


def vit(classes: int = 10) -> nn.Module:
    """A small vision transformer for 3x32x32 images: a class token, and attention as torch and as timm write it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return frozen(Transformer(classes))


class Transformer(nn.Module):
    """Patches and a class token (Dosovitskiy et al. 2020, arXiv:2010.11929), 17 positions of 24 features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.places = nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(Block(nn.MultiheadAttention(24, 3, batch_first=True)), Block(Packed(24, 3)))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        positions = torch.cat([self.token.expand(images.shape[0], -1, -1), patches], dim=1) + self.places
        return cast(Tensor, self.head(self.norm(self.blocks(positions))[:, 0]))


class Block(nn.Module):
    """Attention, then two linear layers, each around a skip."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.LayerNorm(24), attention, nn.LayerNorm(24)
        self.layers = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, positions: Tensor) -> Tensor:
        given = self.first(positions)
        positions = positions + self.attention(given, given, given, need_weights=False)[0]
        return cast(Tensor, positions + self.layers(self.second(positions)))


class Packed(nn.Module):
    """Attention of one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, *_: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        items, positions, width = x.shape
        packed = self.inner(x).reshape(items, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = packed.unbind(0)
        shares = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        return self.outer((shares @ value).transpose(1, 2).reshape(items, positions, width)), None


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            _convolution(before, after, 3, stride), nn.ReLU(inplace=True), _convolution(after, after)
        )
        self.skip = nn.Identity() if before == after else _convolution(before, after, 1, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.path(images) + self.skip(images)))


class Inverted(nn.Module):
    """Expand, filter each channel by itself, weigh the channels, shrink."""

    def __init__(
        self,
        before: int,
        after: int,
        stride: int,
        activation: nn.Module,
        *,
        squeeze: bool,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inner = 4 * before
        self.expand = nn.Sequential(_convolution(before, inner, 1), activation)
        self.filter = nn.Sequential(_convolution(inner, inner, 3, stride, groups=inner), activation)
        pool, less, more = nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 8, 1), nn.Conv2d(8, inner, 1)
        self.gate = nn.Sequential(pool, less, nn.ReLU(), more, gate or nn.Hardsigmoid()) if squeeze else None
        self.shrink = _convolution(inner, after, 1)
        self.adds = stride == 1 and before == after

    def forward(self, images: Tensor) -> Tensor:
        inner = self.filter(self.expand(images))
        if self.gate is not None:
            inner = inner * self.gate(inner)
        shrunk = cast(Tensor, self.shrink(inner))
        return images + shrunk if self.adds else shrunk


def _convolution(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


def frozen(model: nn.Module) -> nn.Module:
    """Eval mode, no parameter gradients, and normalisations with statistics that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval().requires_grad_(False)


def graph_of(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The model as torch.export gives it, with any number of items."""
    items = torch.cat([example[:1]] * 2)
    return export(model, (items,), dynamic_shapes=({0: Dim("batch")},)).module()
