"""Outputs of a torch model's layers on the way to its logits, for attacks that look inside.

Rule 1: nothing is hooked or changed; other threads are not concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from guard.errors import ConfigError
from guard.offline.attacks.model import Model

LAYERS = {"conv1d", "conv2d", "conv3d", "convolution", "linear", "addmm", "mm", "matmul"}  # functions, or aten's name


class Listening(TorchFunctionMode):
    """Context that records the output of every convolution and linear layer called in it, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").split(".")[0] in LAYERS:
            self.heard.append(answer)
        return answer


def layers_of(model: Model, images: Tensor, attack: object) -> list[Tensor]:
    """Return the output of each convolution and linear layer, the logits last. Raises ConfigError."""
    listening = Listening()
    with listening:
        model.module(images)
    if not listening.heard:
        raise ConfigError(f"{attack!r} looks at convolutions and linear layers, and this model has none")
    return listening.heard
