"""Outputs of a torch model's layers on the way to its logits, for attacks that look inside.

Rule 1: nothing is hooked or changed; other threads are not concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guard.errors import ConfigError
from guard.offline.attacks.attack import Model

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


def torch_module(model: Model, attack: object) -> nn.Module:
    """Return the torch module of a model: itself, or the one behind a compiled or watched model. Raises ConfigError."""
    found = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"{attack!r} looks at the model's layers, and {type(model).__name__} shows none; give it the torch module"
        )
    return found


def layers_of(model: Model, images: Tensor, attack: object) -> list[Tensor]:
    """Return the output of each convolution and linear layer, the logits last. Raises ConfigError."""
    listening = Listening()
    with listening:
        torch_module(model, attack)(images)
    if not listening.heard:
        raise ConfigError(f"{attack!r} looks at convolutions and linear layers, and this model has none")
    return listening.heard
