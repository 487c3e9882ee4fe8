"""The union of needs -> as few passes of the model as possible.

Rule 1: one plain pass over the items, one pass over all variant rows together, one backward per distinct rule; noisy
rows whose gradient is asked for run in the plain pass, beside their items.
Rule 2: an item's evidence depends on no other item of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from guard.offline.evidence.needs import (
    ChannelAttribution,
    DenoisedLogits,
    Evidence,
    Image,
    InputGradient,
    Latent,
    Logits,
    Need,
    NoisedGradients,
    Objective,
    SteeredLogits,
)
from guard.offline.evidence.row_pass import RowPass
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import ADJOINTS, ADJOINTS_SMOOTH, with_gradient


class Gather(nn.Module):
    """Unit-space images [item, ...] -> Evidence for exactly these needs.

    `smooth` gives the input gradient a derivative of its own (a softplus-shaped surrogate for ReLU's step), for
    attackers who differentiate through it; values are the same.
    """

    def __init__(self, classifier: Classifier, needs: Iterable[Need], *, smooth: bool = False) -> None:
        super().__init__()
        self.needs: tuple[Need, ...] = distinct(with_own_gradient(needs))
        steered = [need for need in self.needs if isinstance(need, SteeredLogits)]
        denoised = [need for need in self.needs if isinstance(need, DenoisedLogits)]
        self.row_pass = RowPass(classifier, denoised, steered) if denoised or steered else None
        self.attributions = {
            need: classifier.after(need.tap) for need in self.needs if isinstance(need, ChannelAttribution)
        }
        self.taps = self.plain_taps()
        gradients = [need for need in self.needs if isinstance(need, InputGradient)]
        if len(gradients) > 1:
            raise ValueError(f"one backward rule a program is supported; the needs name {gradients}")
        self.gradient = gradients[0] if gradients else None
        self.noised = tuple(need for need in self.needs if isinstance(need, NoisedGradients))
        patterns = [need.noise.patterns(classifier.item_shape) for need in self.noised]
        self.copies = 1 + sum(len(pattern) for pattern in patterns)
        if patterns:
            self.register_buffer("patterns", torch.cat(patterns)[:, None])  # [row, 1, shape of an item]
            self.patterns: Tensor
        plain = classifier.opened(self.taps)
        table = ADJOINTS_SMOOTH if smooth else ADJOINTS
        self.plain: fx.GraphModule = (
            with_gradient(plain, seed=OwnClass(self.gradient.of, self.copies), adjoints=table)
            if self.gradient
            else plain
        )

    def plain_taps(self) -> tuple[str, ...]:
        """What the plain pass has to hand out: latents, and where attributions and steered rows begin."""
        asked = [need.tap for need in self.needs if isinstance(need, Latent | ChannelAttribution)]
        joins = self.row_pass.joins if self.row_pass is not None else None
        return tuple(dict.fromkeys([*asked, *([joins] if joins else [])]))

    @property
    def rows(self) -> int:
        """Variant rows an item, beside the item itself."""
        return sum(need.rows_per_item for need in self.needs)

    @property
    def backwards(self) -> int:
        return sum(need.backwards for need in self.needs)

    def forward(self, images: Tensor) -> Evidence:
        outputs: Sequence[Tensor] = self.plain(self.with_copies(images))
        logits = self.own(outputs[0])
        latents = dict(zip(self.taps, outputs[1:], strict=False))
        evidence: dict[Need, Tensor] = {Image(): images, Logits(): logits}
        evidence |= {need: self.own(pooled(latents[need.tap])) for need in self.needs if isinstance(need, Latent)}
        if self.gradient:
            evidence |= self.gradients(outputs[-1])
        if self.row_pass is not None:
            joins = self.row_pass.joins
            latent = self.own(latents[joins]) if joins else None
            evidence |= self.row_pass(images, predicted_class(logits), latent)
        for need, after in self.attributions.items():
            evidence[need] = attribution(after, self.own(latents[need.tap]))
        return {need: evidence[need] for need in (Image(), Logits(), *self.needs)}

    def with_copies(self, images: Tensor) -> Tensor:
        """The items, followed by their noisy copies."""
        if self.copies == 1:
            return images
        return torch.cat([images, (images + self.patterns).clamp(0.0, 1.0).flatten(0, 1)])

    def own(self, values: Tensor) -> Tensor:
        """Of the items themselves, without their noisy copies."""
        return values if self.copies == 1 else values.unflatten(0, (self.copies, -1))[0]

    def gradients(self, values: Tensor) -> Evidence:
        if self.gradient is None or self.copies == 1:
            return {} if self.gradient is None else {self.gradient: values}
        rows = values.unflatten(0, (self.copies, -1))
        evidence: dict[Need, Tensor] = {self.gradient: rows[0]}
        first = 1
        for need in self.noised:
            evidence[need] = rows[first : first + need.noise.rows].transpose(0, 1)
            first += need.noise.rows
        return evidence


def with_own_gradient(needs: Iterable[Need]) -> Iterable[Need]:
    """Noisy copies run beside their items, whose own gradient then comes as well."""
    for need in needs:
        yield need
        if isinstance(need, NoisedGradients):
            yield InputGradient(need.of)


def distinct(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Each need once, in the order of first mention."""
    return tuple(dict.fromkeys(needs))


def pooled(latent: Tensor) -> Tensor:
    """Feature maps [item, channel, height, width] -> [item, channel]; anything else is flattened."""
    return latent.mean(dim=(2, 3)) if latent.ndim == 4 else latent.flatten(1)


def attribution(after: fx.GraphModule, latent: Tensor) -> Tensor:
    """Gradient of the predicted class's logit times the layer, summed over each channel [item, channel]."""
    with torch.enable_grad():
        watched = latent.detach().requires_grad_(True)
        logits = after(watched, watched)
        (slope,) = torch.autograd.grad(logits.amax(dim=1).sum(), watched)
    product = (slope * watched).detach()
    return product.flatten(2).sum(dim=2) if product.ndim > 2 else product


class OwnClass:
    """The seed [copy x item, class] of a gradient whose objective is the item's own, in each of its copies."""

    def __init__(self, of: Objective, copies: int) -> None:
        self.of: Objective = of
        self.copies = copies

    def __call__(self, logits: Tensor) -> Tensor:
        if self.copies == 1:
            return SEEDS[self.of](logits)
        return SEEDS[self.of](logits.unflatten(0, (self.copies, -1))[0]).repeat(self.copies, 1)


def predicted_class(logits: Tensor) -> Tensor:
    """Seed of the predicted class's logit [item, class]."""
    return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def predicted_margin(logits: Tensor) -> Tensor:
    """Seed of the predicted class's margin over the runner-up [item, class]."""
    first = predicted_class(logits)
    return first - predicted_class(logits - first * (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True) + 1.0))


SEEDS = {"logit": predicted_class, "margin": predicted_margin}
