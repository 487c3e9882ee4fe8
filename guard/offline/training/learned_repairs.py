"""The denoisers for REPAIR that are networks, trained on the items that heads are fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.detectors.detector import Head
from guard.offline.detectors.magnet import Magnet
from guard.offline.model.classifier import Classifier


def trained(repairs: Sequence[Denoiser], lessons: Callable[[], DenoiserLessons]) -> tuple[Denoiser, ...]:
    """Return the denoisers, those with a network after it has learned. Raises DataError for too few items."""
    if not any(isinstance(one, Learned) for one in repairs):
        return tuple(repairs)
    given = lessons()
    return tuple(one.learn(given) if isinstance(one, Learned) else one for one in repairs)


def lessons_of(
    classifier: Classifier, data: Dataset, crafted: Sequence[CraftedSet], heads: Mapping[str, Head], seed: int
) -> DenoiserLessons:
    """Return what denoisers learn from: the heads split, clean, and what attacks made of it beside its originals."""
    clean = data.part(Split.HEADS)
    parts = [found.select(data.splits, Split.HEADS) for found in crafted]
    blank = np.zeros((0, *data.item_shape), dtype=np.float32)

    def joined(images: Iterable[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.concatenate([blank, *(one[:] for one in images)]))

    return DenoiserLessons(
        torch.from_numpy(clean.images[:]),
        torch.from_numpy(clean.labels),
        joined(part.attacked for part in parts),
        joined(part.clean for part in parts),
        classifier,
        seed,
        autoencoders_of(heads),
    )


def autoencoders_of(heads: Mapping[str, Head]) -> dict[tuple[float, int], nn.Module]:
    """Return the autoencoders that detectors have trained, by noise and epochs."""
    found = [head.detector for head in heads.values()]
    return {(d.noise, d.epochs): d.network.network for d in found if isinstance(d, Magnet) and d.network is not None}
