"""High-level guided denoiser: a U-Net that takes off what moves the model's answer, whatever it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.data.kind_names import IN_PLACES, Kinds
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.networks.guided_unet import cleaned_by, train_guided


@dataclass(frozen=True)
class GuidedUNet(Learned):
    """Denoiser that subtracts what a U-Net finds, trained so that the model answers as it does for the clean item.

    It learns from attacked items beside the clean ones that they were made of, and from the clean ones themselves.

    Source: Liao et al. 2018, arXiv:1712.02976, section 3, their logits-guided loss (eq. 5). Theirs has 11 million
    weights and learns 100 epochs of 210,000 items; ours is small, and learns from the attacks of the recipe.
    """

    name: ClassVar[str] = "guided_unet"
    kinds: ClassVar[Kinds] = IN_PLACES
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    epochs: int = 20

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"denoiser 'guided_unet': epochs = {self.epochs!r}; wanted at least 1")

    def train(self, lessons: DenoiserLessons) -> nn.Module:
        lessons.check(self.name, pairs=True)
        items = torch.cat([lessons.attacked, lessons.clean])
        originals = torch.cat([lessons.originals, lessons.clean])
        return train_guided(items, originals, lessons.model, epochs=self.epochs, seed=lessons.seed)

    def __call__(self, images: Tensor) -> Tensor:
        return cleaned_by(self.network, images)
