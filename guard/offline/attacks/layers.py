"""What a torch model's layers answer on the way to its logits, for attacks that look inside.

Rule 1: nothing is hooked or changed; listening is the listening thread's own affair.
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
    """Keeps the answer of every convolution and linear layer that is called within, in the order of the calls."""

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
    """The torch side of a model: itself, or what stands behind a compiled or watched one. Raises ConfigError."""
    found = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"{attack!r} looks at the model's layers, and {type(model).__name__} shows none; give it the torch module"
        )
    return found


def layers_of(model: Model, images: Tensor, attack: object) -> list[Tensor]:
    """What each convolution and linear layer answers, the logits last. Raises ConfigError."""
    listening = Listening()
    with listening:
        torch_module(model, attack)(images)
    if not listening.heard:
        raise ConfigError(f"{attack!r} looks at convolutions and linear layers, and this model has none")
    return listening.heard
