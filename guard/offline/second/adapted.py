"""A second network behind a map from the guarded model's items to its own: channels, then size.

Rule 1: everything is in the program: what is served resizes as what was checked, and an attacker differentiates it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from guard.errors import ModelError
from guard.offline.model.declared_input import DeclaredInput
from guard.offline.model.graph.separable import matrices

LUMA_SHARES = (0.299, 0.587, 0.114)  # of red, green and blue in grey, as pictures are converted (ITU-R BT.601)
PICTURE_CHANNELS = (1, 3)
Shape = tuple[int, ...]


class Adapted(nn.Module):
    """Network on items of another shape: unit-space items [item, ...] -> its logits [item, class]."""

    def __init__(self, network: nn.Module, given: Shape, taken: Shape) -> None:
        super().__init__()
        self.network, self.given, self.taken = network, given, taken
        if given[1:] != taken[1:]:
            resize = partial(interpolate, size=taken[1:], mode="bilinear", align_corners=False, antialias=True)
            down, across = matrices(resize, *given[1:])
            self.register_buffer("down", down)  # [own height, height]
            self.register_buffer("across", across.T.contiguous())  # [width, own width]
            self.down: Tensor
            self.across: Tensor
        self.register_buffer("luma", torch.tensor(LUMA_SHARES).reshape(1, 3, 1, 1), persistent=False)
        self.luma: Tensor

    def forward(self, items: Tensor) -> Tensor:
        if self.given[0] != self.taken[0]:
            items = (
                (items * self.luma).sum(dim=1, keepdim=True) if self.taken[0] == 1 else torch.cat([items] * 3, dim=1)
            )
        if self.given[1:] != self.taken[1:]:
            items = self.down @ items @ self.across
        logits: Tensor = self.network(items)
        return logits

    @property
    def in_words(self) -> str:
        """The changes of an item on its way, in words."""
        found = []
        if self.given[0] != self.taken[0]:
            found.append("made grey" if self.taken[0] == 1 else "grey, given as RGB")
        if self.given[1:] != self.taken[1:]:
            sizes = (" x ".join(map(str, shape[1:])) for shape in (self.given, self.taken))
            found.append(f"resized from {' to '.join(sizes)}, bilinearly")
        return ", ".join(found) or "as they are"


def own_shape(declared: DeclaredInput, given: Shape, name: str) -> Shape:
    """Return the item [channel, height, width] or [feature] that a second network takes, by what its file declares.

    What the file leaves open is as the guarded model's items are. Raises ModelError where it cannot be adapted to.
    """
    sizes = declared.item
    if sizes is None:
        return given
    if len(sizes) != len(given) or len(given) != 3:
        found = (
            tuple(given[place] if size is None else size for place, size in enumerate(sizes))
            if len(sizes) == len(given)
            else sizes
        )
        if found != given:
            raise ModelError(
                f"{name} takes items of {list(sizes)}, the guarded model {list(given)}; wanted a second network of "
                "the same items (only pictures are resized)"
            )
        return given
    last_first = declared.either and sizes[0] not in PICTURE_CHANNELS and sizes[2] in PICTURE_CHANNELS
    channels, height, width = (sizes[2], *sizes[:2]) if last_first else sizes
    taken = (channels or given[0], height or given[1], width or given[2])
    if taken[0] != given[0] and {taken[0], given[0]} != set(PICTURE_CHANNELS):
        raise ModelError(
            f"{name} takes pictures of {taken[0]} channels, the guarded model of {given[0]}; wanted the same, or "
            "grey for RGB or the reverse"
        )
    return taken
