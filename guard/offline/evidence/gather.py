"""The union of needs -> as few passes of the model as possible.

Rule 1: one plain pass over the items, one pass over all variant rows together, one backward per distinct rule.
Rule 2: an item's evidence depends on no other item of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from guard.offline.evidence.needs import DenoisedLogits, Evidence, Image, InputGradient, Latent, Logits, Need
from guard.offline.model.adjoint import ADJOINTS, ADJOINTS_SMOOTH, with_gradient
from guard.offline.model.classifier import Classifier


class Gather(nn.Module):
    """Unit-space images [item, ...] -> Evidence for exactly these needs.

    `smooth` gives the input gradient a derivative of its own (a softplus-shaped surrogate for ReLU's step), for
    attackers who differentiate through it; values are the same.
    """

    def __init__(self, classifier: Classifier, needs: Iterable[Need], *, smooth: bool = False) -> None:
        super().__init__()
        self.needs: tuple[Need, ...] = distinct(needs)
        self.taps = tuple(need.tap for need in self.needs if isinstance(need, Latent))
        gradients = [need for need in self.needs if isinstance(need, InputGradient)]
        if len(gradients) > 1:
            raise ValueError(f"one backward rule a program is supported; the needs name {gradients}")
        self.gradient = gradients[0] if gradients else None
        self.variants = tuple(need for need in self.needs if isinstance(need, DenoisedLogits))
        plain = classifier.opened(self.taps)
        table = ADJOINTS_SMOOTH if smooth else ADJOINTS
        self.plain: fx.GraphModule = (
            with_gradient(plain, seed=SEEDS[self.gradient.of], adjoints=table) if self.gradient else plain
        )
        self.again = classifier.opened(()) if self.variants else None

    @property
    def rows(self) -> int:
        """Variant rows an item, beside the item itself."""
        return sum(need.rows_per_item for need in self.needs)

    @property
    def backwards(self) -> int:
        return sum(need.backwards for need in self.needs)

    def forward(self, images: Tensor) -> Evidence:
        outputs: Sequence[Tensor] = self.plain(images)
        evidence: dict[Need, Tensor] = {Image(): images, Logits(): outputs[0]}
        for tap, latent in zip(self.taps, outputs[1:], strict=False):
            evidence[Latent(tap)] = pooled(latent)
        if self.gradient:
            evidence[self.gradient] = outputs[-1]
        if self.again is not None:
            rows = torch.cat([need.denoiser(images) for need in self.variants])
            (logits,) = self.again(rows)
            shaped = logits.reshape(len(self.variants), -1, logits.shape[-1])
            evidence |= {need: shaped[i] for i, need in enumerate(self.variants)}
        return {need: evidence[need] for need in (Image(), Logits(), *self.needs)}


def distinct(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Each need once, in the order of first mention."""
    return tuple(dict.fromkeys(needs))


def pooled(latent: Tensor) -> Tensor:
    """Feature maps [item, channel, height, width] -> [item, channel]; anything else is flattened."""
    return latent.mean(dim=(2, 3)) if latent.ndim == 4 else latent.flatten(1)


def predicted_class(logits: Tensor) -> Tensor:
    """Seed of the predicted class's logit [item, class]."""
    return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def predicted_margin(logits: Tensor) -> Tensor:
    """Seed of the predicted class's margin over the runner-up [item, class]."""
    first = predicted_class(logits)
    return first - predicted_class(logits - first * (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True) + 1.0))


SEEDS = {"logit": predicted_class, "margin": predicted_margin}
