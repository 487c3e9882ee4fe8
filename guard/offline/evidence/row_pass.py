"""Shared row pass: every variant of the items, denoised, covered or steered, in one forward of the model.

Rule 1: all rows run together; a steered row joins where it is first steered, and the plain pass serves as its
beginning.
Rule 2: where layers are read at rows that are other inputs, these run by themselves, since steered rows know no earlier
layer. So do rows whose need brings a pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from guard.errors import ConfigError
from guard.offline.evidence.kinds.plain import pooled
from guard.offline.evidence.kinds.variants import OwnPass, RowAnswers, RowNeed
from guard.offline.evidence.needs import Evidence
from guard.offline.evidence.steering import Steer
from guard.offline.model.classifier import Classifier
from guard.offline.model.unit_space import unordered


class RowPass(nn.Module):
    """Module that maps images [item, ...] and results of the plain pass to what each row need reads."""

    def __init__(self, classifier: Classifier, needs: Sequence[RowNeed]) -> None:
        super().__init__()
        self.register_buffer("unordered", unordered(classifier.spec.input.features))
        self.unordered: Tensor | None
        apart = {need: own for need in needs if (own := need.own_pass(classifier)) is not None}
        self.apart, self.passes = tuple(apart), nn.ModuleList(apart.values())
        sources = tuple(dict.fromkeys(need.source for need in needs if need not in apart))
        steers = {need: need.steers for need in sources}
        self.inputs = tuple(need for need in sources if not steers[need])  # needs whose rows are other inputs
        self.steered = tuple(need for need in sources if steers[need])
        self.shared = tuple(need for need in needs if need not in apart)
        self.taps = tuple(dict.fromkeys(tap for need in self.shared for tap in need.taps))
        for place, need in enumerate(self.inputs):
            self.register_buffer(f"fixed_{place}", need.fixed(classifier.item_shape), persistent=False)
        self.joint = joint_taps([tuple(steers[need]) for need in self.steered])
        self.before: fx.GraphModule | None = None
        self.steers = nn.ModuleList()
        self.whole: fx.GraphModule | None = None  # from other inputs to logits and layers
        if self.inputs and (self.taps or not self.joint):
            self.whole = classifier.opened(self.taps)
        if not self.joint:
            return
        first, *later = self.joint
        self.steers.extend(steers[need][first] for need in self.steered)
        between = {tap: SteerLast([steers[need][tap] for need in self.steered]) for tap in later}
        self.before = classifier.before(first) if self.inputs and self.whole is None else None
        self.after = classifier.after(first, between)

    @property
    def joins(self) -> tuple[str, ...]:
        """Taps of the plain pass at which rows begin that are no other inputs."""
        begun = [one.joins for one in self.passes if isinstance(one, OwnPass)]
        return tuple(dict.fromkeys([*self.joint[:1], *(tap for tap in begun if tap is not None)]))

    def forward(
        self, images: Tensor, named: Tensor, begun: Mapping[str, Tensor], found: Evidence
    ) -> Mapping[RowNeed, Tensor]:
        """Return what each need reads at its rows of unit-space images [item, ...].

        `named` is the class that the plain pass predicts [item, class], one-hot; `begun` holds its layers at `joins`;
        `found` the evidence of second networks.
        """
        own = [one(images, begun) for one in self.passes]
        answers = self.together(images, named, begun, found) if self.shared else {}
        return {**dict(zip(self.apart, own, strict=True)), **answers}

    def together(
        self, images: Tensor, named: Tensor, begun: Mapping[str, Tensor], found: Evidence
    ) -> Mapping[RowNeed, Tensor]:
        """Return what each need reads of the rows that run together."""
        rows = [self.variants(place, images, found) for place in range(len(self.inputs))]
        counts = [len(row) for row in rows]
        given = torch.cat([row.flatten(0, 1) for row in rows]) if rows else None
        latents: Mapping[str, Tensor] = {}
        parts: list[Tensor] = []
        if self.whole is not None:
            logits, *layers = self.whole(given)
            parts.append(logits)
            latents = {t: by_row(pooled(one, images), sum(counts)) for t, one in zip(self.taps, layers, strict=True)}
        if self.joint:
            latent = begun[self.joint[0]]
            maps = [self.before(given)] if self.before is not None else []
            parts.append(self.after(torch.cat([*maps, *(steer(latent, named) for steer in self.steers)]), named))
        answers = by_row(torch.cat(parts) if len(parts) > 1 else parts[0], sum(counts) + len(self.steered))
        return self.read(RowAnswers(answers, latents), counts)

    def variants(self, place: int, images: Tensor, found: Evidence) -> Tensor:
        """Return a need's own inputs [row, item, ...]; categories of a table stay as they are: they have no order."""
        fixed = getattr(self, f"fixed_{place}")
        varied = self.inputs[place].variants(images, fixed, found)
        return varied if self.unordered is None else torch.where(self.unordered, images, varied)

    def read(self, every: RowAnswers, counts: Sequence[int]) -> Mapping[RowNeed, Tensor]:
        """Return what each need reads at its own rows, of those of all."""
        own: dict[RowNeed, RowAnswers] = {}
        start = 0
        for need, count in zip((*self.inputs, *self.steered), (*counts, *[1] * len(self.steered)), strict=True):
            rows = slice(start, start + count)
            latents = {tap: layer[rows] for tap, layer in every.latents.items()} if start < sum(counts) else {}
            own[need] = RowAnswers(every.logits[rows], latents)
            start += count
        return {need: need.read(own[need.source]) for need in self.shared}


def by_row(values: Tensor, rows: int) -> Tensor:
    """Return values [row x item, ...] as [row, item, ...]."""
    shaped: Tensor = values.unflatten(0, (rows, -1))
    return shaped


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
