"""Shared row pass: every variant of the items, denoised or steered, in one forward of the model.

Rule 1: all rows run together; a steered row joins where it is first steered, and the plain pass serves as its
beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from guard.errors import ConfigError
from guard.offline.evidence.kinds.variants import RowNeed
from guard.offline.evidence.steering import Steer
from guard.offline.model.classifier import Classifier
from guard.offline.model.unit_space import unordered


class RowPass(nn.Module):
    """Module that maps images [item, ...] and results of the plain pass to the logits [item, class] of each variant."""

    def __init__(self, classifier: Classifier, needs: Sequence[RowNeed]) -> None:
        super().__init__()
        self.register_buffer("unordered", unordered(classifier.spec.input.features))
        self.unordered: Tensor | None
        steers = {need: need.steers for need in needs}
        self.inputs = tuple(need for need in needs if not steers[need])  # needs whose rows are other inputs
        self.steered = tuple(need for need in needs if steers[need])
        self.joint = joint_taps([tuple(steers[need]) for need in self.steered])
        self.before: fx.GraphModule | None = None
        self.steers = nn.ModuleList()
        if not self.joint:
            self.after = classifier.opened(())
            return
        first, *later = self.joint
        self.steers.extend(steers[need][first] for need in self.steered)
        between = {tap: SteerLast([steers[need][tap] for need in self.steered]) for tap in later}
        self.before = classifier.before(first) if self.inputs else None
        self.after = classifier.after(first, between)

    @property
    def joins(self) -> str | None:
        """Tap of the plain pass at which steered rows begin, or None."""
        return self.joint[0] if self.joint else None

    def forward(self, images: Tensor, named: Tensor, latent: Tensor | None) -> Mapping[RowNeed, Tensor]:
        """Return the logits of each variant of unit-space images [item, ...].

        `named` is the class that the plain pass predicts [item, class], one-hot; `latent` is its feature map at
        `joins`.
        """
        rows = [self.variant(need, images) for need in self.inputs]
        if latent is None:
            (logits,) = self.after(torch.cat(rows))
        else:
            maps = [self.before(torch.cat(rows))] if self.before is not None else []
            logits = self.after(torch.cat([*maps, *(steer(latent, named) for steer in self.steers)]), named)
        variants = (*self.inputs, *self.steered)
        shaped = logits.reshape(len(variants), -1, logits.shape[-1])
        return {need: shaped[i] for i, need in enumerate(variants)}

    def variant(self, need: RowNeed, images: Tensor) -> Tensor:
        """Return a need's own input [item, ...]; categories of a table stay as they are, since they have no order."""
        varied = need.variant(images)
        return varied if self.unordered is None else torch.where(self.unordered, images, varied)


class SteerLast(nn.Module):
    """Module that steers the last rows of a pass, one of `steers` each, and leaves the rows before them unchanged."""

    def __init__(self, steers: Sequence[Steer]) -> None:
        super().__init__()
        self.steers = nn.ModuleList(steers)

    def forward(self, latent: Tensor, named: Tensor) -> Tensor:
        """Steer `latent` [row x item, channel, ...] towards the predicted classes `named` [item, class], one-hot."""
        value = latent.flatten(2).mean(dim=2) if latent.ndim > 2 else latent
        rows = value.reshape(-1, *named.shape[:1], value.shape[1])  # [row, item, channel]
        last = len(self.steers)
        factors = [torch.ones_like(rows[:-last])]
        for place, steer in enumerate(self.steers):
            if isinstance(steer, Steer):
                factors.append(steer.factor(rows[place - last], named @ steer.mask)[None])
        factor = torch.cat(factors).flatten(0, 1)
        return latent * factor.reshape(*factor.shape, *[1] * (latent.ndim - 2))


def joint_taps(steered: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the taps that all needs steer together. Raises ConfigError where they steer different ones."""
    found = set(steered)
    if len(found) > 1:
        raise ConfigError(
            f"the detectors of one program steer different layers, {sorted(found)}; wanted the same in all: give "
            "them the same `steered`, or leave one of them out"
        )
    return found.pop() if found else ()
