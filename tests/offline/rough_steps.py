"""Steps that an attacker cannot differentiate, found by running a part and not by reading its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from guard.offline.denoisers.stand_in import StandIn

# Through these no derivative comes, or none that is worth following.
ROUGH = {
    *("round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside", "detach"),
    *("argmax", "argmin", "argsort", "sort", "topk", "kthvalue", "searchsorted", "bucketize"),
}
MOVED_SHARE = 0.5  # of the items at least must have a derivative


class Watch(TorchFunctionMode):
    """Notes every function of torch that is called within, however deep."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.add(getattr(func, "__name__", "").rstrip("_"))
        return func(*args, **(kwargs or {}))


def faults(stated: Iterable[StandIn], served: Callable[..., Tensor], *inputs: Tensor) -> list[str]:
    """What is wrong with a part that turns inputs [item, ...] into an output [item, ...] and states these stand-ins.

    Most items need a derivative with respect to some input, and each input one for some item (a maximum has it for the
    largest alone), unless it is stated that something is held.
    """
    stand_ins, found = tuple(stated), []
    with torch.no_grad():
        values = served(*inputs)
    points = [one.detach().clone().requires_grad_() for one in inputs]
    with torch.enable_grad(), Watch() as watch:
        output = served(*points)
    rough = sorted(watch.called & ROUGH)
    if rough and not stand_ins:
        found.append(f"{', '.join(rough)}: what does an attacker differentiate instead?")
    if not torch.equal(output.detach(), values):
        found.append("another value where it is differentiated")
    slopes = [torch.zeros_like(point) for point in points]
    if output.requires_grad:
        slopes = list(torch.autograd.grad(output.sum(), points, materialize_grads=True))
    # [:, None]: an input may be one value an item
    moved = torch.stack([slope[:, None].flatten(1).abs().amax(dim=1) > 0 for slope in slopes])  # [input, item]
    if not all(bool(slope.isfinite().all()) for slope in slopes):
        found.append("a derivative that is not finite")
    held = any("held" in one.derivative for one in stand_ins)
    if float(moved.any(dim=0).float().mean()) < MOVED_SHARE or not (held or bool(moved.any(dim=1).all())):
        found.append(f"no derivative: it comes to {moved.sum(dim=1).tolist()} of {moved.shape[1]} items by input")
    return found
