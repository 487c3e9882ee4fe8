"""Networks of a convolution, one function of torch, and a linear layer: one for each operator or write in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (3, 16, 16)
HIDDEN = (6, 8, 8)  # what the function is given: channel, height, width
MASK = torch.arange(384).reshape(HIDDEN) % 3 == 0
ORDER = torch.tensor([3, 0, 5, 1, 4, 2])
CHANNELS = torch.linspace(0.1, 0.4, 6).view(1, -1, 1, 1)

Function = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A convolution, a function, and a linear layer from as many numbers as the function gives."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function = nn.Conv2d(3, HIDDEN[0], 3, 2, 1), function
        with torch.no_grad():
            width = function(torch.rand(1, *HIDDEN)).flatten(1).shape[1]
        self.last = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(images)).flatten(1))
        return logits


def shifted(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2, :, 1:] = x[:, :2, :, :-1]
    out[:, 2:4, 1:] = x[:, 2:4, :-1]
    out[:, 4:] = x[:, 4:]
    return out


def crossed(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2] = x[:, ::2] * 2
    return x


def zeroed(x: Tensor) -> Tensor:
    x = x * 1
    x[:, 0] = 0
    return x


def added(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 1:3] += x[:, :2]
    return y


def put_by_mask(x: Tensor) -> Tensor:
    y = x * 1
    y[:, MASK] = 0.0
    return y


def put_by_index(x: Tensor) -> Tensor:
    y = x * 1
    y[:, [1, 3]] = x[:, [0, 2]]
    return y


def rows(x: Tensor) -> Tensor:
    return x.flatten(2)


def gram(x: Tensor) -> Tensor:
    return rows(x) @ rows(x).transpose(1, 2)


def outer(x: Tensor) -> Tensor:
    means = x.mean((2, 3))
    return means[:, :, None] * means[:, None]


UNITS: Mapping[str, Function] = {
    "mish": functional.mish,
    "selu": functional.selu,
    "celu": functional.celu,
    "prelu": lambda x: functional.prelu(x, CHANNELS.flatten()),
    "rrelu": functional.rrelu,
    "glu": lambda x: functional.glu(x, 1),
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "hardshrink": lambda x: functional.hardshrink(x, 0.2),
    "softshrink": lambda x: functional.softshrink(x, 0.2),
    "threshold": lambda x: functional.threshold(x, 0.1, 0.0),
    "logsigmoid": functional.logsigmoid,
    "softmin": lambda x: functional.softmin(x, 1),
    "relu6": functional.relu6,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
POINTWISE: Mapping[str, Function] = {
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "square": torch.square,
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": torch.expm1,
    "exp2": torch.exp2,
    "log2": lambda x: torch.log2(x.abs() + 1),
    "log10": lambda x: torch.log10(x.abs() + 1),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.tan(x * 0.1),
    "asin": lambda x: torch.asin(x.tanh() * 0.9),
    "acos": lambda x: torch.acos(x.tanh() * 0.9),
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1.5),
    "atanh": lambda x: torch.atanh(x.tanh() * 0.9),
    "erfc": torch.erfc,
    "xlogy": lambda x: torch.xlogy(x.abs() + 0.1, x.abs() + 0.1),
    "logit": lambda x: torch.logit(torch.sigmoid(x) * 0.9 + 0.05),
    "nan_to_num": torch.nan_to_num,
    "heaviside": lambda x: x * (x > 0),
    "fmod": lambda x: torch.fmod(x, 1.0),
    "remainder": lambda x: torch.remainder(x, 1.0),
    "masked_fill": lambda x: x.masked_fill(MASK, 0.5),
    "where": lambda x: torch.where(MASK, x, -x),
    "maximum": lambda x: torch.maximum(x, -x * 0.5),
    "minimum": lambda x: torch.minimum(x, x * 0.5),
    "pow_tensor": lambda x: torch.pow(x.abs() + 0.1, CHANNELS),
    "pow_of_two": lambda x: torch.pow(2.0, x),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "clamp_tensor": lambda x: torch.clamp(x, min=CHANNELS),
    "logaddexp": lambda x: torch.logaddexp(x, x * 0.5),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "atan2": lambda x: torch.atan2(x, x.abs() + 1),
}
REDUCTIONS: Mapping[str, Function] = {
    "max_dim": lambda x: x.max(1).values,
    "min_dim": lambda x: x.min(2).values,
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin(1),
    "var": lambda x: x.var((2, 3)),
    "std": lambda x: x.std(1),
    "var_mean": lambda x: torch.var_mean(x, 1)[0],
    "norm": lambda x: torch.norm(x, dim=1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "normalize": lambda x: functional.normalize(x, dim=1),
    "cosine_similarity": lambda x: functional.cosine_similarity(x, x.flip(1).roll(1, 1), 1),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "cumsum": lambda x: x.cumsum(1),
    "prod": lambda x: (x * 0.1 + 1).prod(1),
    "topk": lambda x: x.flatten(1).topk(10, 1).values,
    "sort": lambda x: x.sort(1).values,
    "median": lambda x: x.median(1).values,
    "fft": lambda x: torch.fft.rfft2(x).abs(),
}
PLACES: Mapping[str, Function] = {
    "roll": lambda x: torch.roll(x, (1, -2), (2, 3)),
    "roll_channels": lambda x: torch.roll(x, 1, 1),
    "flip": lambda x: torch.flip(x, [3]),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "unfold": lambda x: functional.unfold(x, 3, padding=1),
    "tensor_unfold": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2),
    "fold": lambda x: functional.fold(functional.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "pad_reflect": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pad_replicate": lambda x: functional.pad(x, (1, 1, 1, 1), mode="replicate"),
    "pad_circular": lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"),
    "index": lambda x: x[:, ORDER],
    "index_of_index": lambda x: x[:, :, ORDER][:, :, :, ORDER],
    "gather": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.long)),
    "stack": lambda x: torch.stack([x, x * 2], 2),
    "hstack": lambda x: torch.hstack([x, x]),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: torch.tile(x, (1, 1, 2, 1)),
    "movedim": lambda x: x.movedim(1, 3),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "narrow": lambda x: x.narrow(1, 1, 3),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "tril": torch.tril,
    "triu": lambda x: x.triu(1),
    "channel_shuffle": lambda x: functional.channel_shuffle(x, 2),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(torch.cat([x, x], 1), 2),
}
LAYERS: Mapping[str, Function] = {
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: functional.interpolate(x, size=(12, 12)),
    "bicubic": lambda x: functional.interpolate(x, size=(12, 12), mode="bicubic"),
    "area": lambda x: functional.interpolate(x, size=(4, 4), mode="area"),
    "instance_norm": functional.instance_norm,
    "group_norm": lambda x: functional.group_norm(x, 2),
    "rms_norm": lambda x: functional.rms_norm(x, (8,)),
    "local_response_norm": lambda x: functional.local_response_norm(x, 3),
    "lp_pool": lambda x: functional.lp_pool2d(x.abs() + 0.1, 2, 2),
    "adaptive_max_pool": lambda x: functional.adaptive_max_pool2d(x, 3),
    "adaptive_avg_pool": lambda x: functional.adaptive_avg_pool2d(x, 3),
    "max_pool_rounded_up": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool_dilated": lambda x: functional.max_pool2d(x, 2, 1, dilation=2),
    "conv_transpose": lambda x: functional.conv_transpose2d(x, torch.full((6, 3, 2, 2), 0.1), stride=2),
    "matmul": gram,
    "baddbmm": lambda x: torch.baddbmm(gram(x), rows(x), rows(x).transpose(1, 2)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "cdist": lambda x: torch.cdist(rows(x), rows(x) + 1),
    "outer": outer,
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "attention_causal": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
}
IN_PLACE: Mapping[str, Function] = {
    "shifted": shifted,
    "crossed": crossed,
    "zeroed": zeroed,
    "added": added,
    "put_by_mask": put_by_mask,
    "put_by_index": put_by_index,
}
OPERATORS: Mapping[str, Function] = {**UNITS, **POINTWISE, **REDUCTIONS, **PLACES, **LAYERS, **IN_PLACE}
