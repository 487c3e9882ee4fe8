"""Gathers evidence in batches, fits the heads on it, and keeps them beside the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.bundle import read_npz
from guard.errors import DataError
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Evidence, Need
from guard.offline.model.classifier import Classifier

BATCH = 128
Progress = Callable[[int, int], None]  # (items done, items in all)
Gathered = Callable[[NDArray[np.float32]], Evidence]  # unit-space images [item, ...] -> their evidence


def gather_all(gather: Gather, images: NDArray[np.float32], progress: Progress | None = None) -> Evidence:
    """Evidence of unit-space images [item, ...], computed in batches."""
    parts: list[Evidence] = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            parts.append(gather(torch.from_numpy(images[start : start + BATCH])))
            if progress:
                progress(min(start + BATCH, len(images)), len(images))
    if not parts:
        raise DataError("no items to gather evidence from")
    return {need: torch.cat([part[need] for part in parts]) for need in parts[0]}


def fit_heads(
    classifier: Classifier,
    detectors: Sequence[Detector],
    *,
    clean: NDArray[np.float32],
    labels: NDArray[np.int64],
    noisy: NDArray[np.float32],
    attacked: NDArray[np.float32],
    families: tuple[str, ...],
    seed: int,
    report: Callable[[str], None],
    gathered: Gathered | None = None,
) -> dict[str, Head]:
    """Fit every detector on the heads split; evidence is gathered once for all of them, or by `gathered`.

    Raises DataError.
    """
    gather = Gather(classifier, [need for detector in detectors for need in detector.needs])
    collect = gathered or (lambda images: gather_all(gather, images))
    evidence = [collect(images) if len(images) else empty(gather, clean) for images in (clean, noisy, attacked)]
    examples = Examples(evidence[0], torch.from_numpy(labels), evidence[1], evidence[2], families, seed)
    heads = {}
    for detector in detectors:
        report(detector.name)
        heads[detector.name] = detector.fit(examples)
    return heads


def empty(gather: Gather, like: NDArray[np.float32]) -> Mapping[Need, Tensor]:
    """Evidence of no item."""
    with torch.no_grad():
        return {need: value[:0] for need, value in gather(torch.from_numpy(like[:1])).items()}


def save_heads(heads: Mapping[str, Head], folder: Path) -> None:
    """One .npz a head, no pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, head in heads.items():
        np.savez(folder / f"{name}.npz", **{key: value.detach().numpy() for key, value in head.state_dict().items()})


def load_heads(detectors: Sequence[Detector], folder: Path) -> dict[str, Head]:
    """Raises BundleError where a head is missing or damaged."""
    heads = {}
    for detector in detectors:
        state = {
            key: torch.from_numpy(np.ascontiguousarray(value))
            for key, value in read_npz(folder / f"{detector.name}.npz").items()
        }
        heads[detector.name] = detector.restore(state)
    return heads
