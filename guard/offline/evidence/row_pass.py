"""The shared row pass: every variant of the items, denoised or steered, in one forward of the model.

Rule 1: all rows run together; a steered row joins where it is first steered, its beginning being the plain pass's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from guard.offline.evidence.needs import DenoisedLogits, SteeredLogits
from guard.offline.evidence.steering import Steer, Steering
from guard.offline.model.classifier import Classifier

Variant = DenoisedLogits | SteeredLogits


class RowPass(nn.Module):
    """Unit-space images [item, ...], and what the plain pass found, -> logits [item, class] of each variant."""

    def __init__(
        self, classifier: Classifier, denoised: Sequence[DenoisedLogits], steered: Sequence[SteeredLogits]
    ) -> None:
        super().__init__()
        self.denoised, self.steered = tuple(denoised), tuple(steered)
        self.joint = joint_taps([need.steering for need in steered])
        self.before: fx.GraphModule | None = None
        self.steers = nn.ModuleList()
        if not self.joint:
            self.after = classifier.opened(())
            return
        first, *later = self.joint
        self.steers.extend(steers(steered, first))
        between = {tap: SteerLast(steers(steered, tap)) for tap in later}
        self.before = classifier.before(first) if denoised else None
        self.after = classifier.after(first, between)

    @property
    def joins(self) -> str | None:
        """The tap of the plain pass that steered rows begin at."""
        return self.joint[0] if self.joint else None

    def forward(self, images: Tensor, named: Tensor, latent: Tensor | None) -> Mapping[Variant, Tensor]:
        """`named` is the class that the plain pass names [item, class], one-hot; `latent` its map at `joins`."""
        rows = [need.denoiser(images) for need in self.denoised]
        if latent is None:
            (logits,) = self.after(torch.cat(rows))
        else:
            maps = [self.before(torch.cat(rows))] if self.before is not None else []
            logits = self.after(torch.cat([*maps, *(steer(latent, named) for steer in self.steers)]), named)
        variants: tuple[Variant, ...] = (*self.denoised, *self.steered)
        shaped = logits.reshape(len(variants), -1, logits.shape[-1])
        return {need: shaped[i] for i, need in enumerate(variants)}


class SteerLast(nn.Module):
    """Steers the last rows of a pass, one of `steers` each, and leaves the rows before them as they are."""

    def __init__(self, steers: Sequence[Steer]) -> None:
        super().__init__()
        self.steers = nn.ModuleList(steers)

    def forward(self, latent: Tensor, named: Tensor) -> Tensor:
        """`latent` [row x item, channel, ...], `named` [item, class]."""
        value = latent.flatten(2).mean(dim=2) if latent.ndim > 2 else latent
        rows = value.reshape(-1, *named.shape[:1], value.shape[1])  # [row, item, channel]
        last = len(self.steers)
        factors = [torch.ones_like(rows[:-last])]
        for place, steer in enumerate(self.steers):
            if isinstance(steer, Steer):
                factors.append(steer.factor(rows[place - last], named @ steer.mask)[None])
        factor = torch.cat(factors).flatten(0, 1)
        return latent * factor.reshape(*factor.shape, *[1] * (latent.ndim - 2))


def steers(needs: Sequence[SteeredLogits], tap: str) -> list[Steer]:
    """What each of the steerings does at one tap."""
    return [Steer(need.steering.masks()[tap], need.steering.strength) for need in needs]


def joint_taps(steerings: Sequence[Steering]) -> tuple[str, ...]:
    """The taps that all of them steer. Raises ValueError where they steer different ones."""
    found = {steering.taps for steering in steerings}
    if len(found) > 1:
        raise ValueError(f"one pass steers the same taps in every row; the needs name {sorted(found)}")
    return found.pop() if found else ()
