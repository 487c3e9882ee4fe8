"""Gathers evidence in batches, fits the heads on it, and keeps them beside the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.bundle import read_npz
from guard.errors import DataError
from guard.offline.detectors.detector import Detector, Examples, Head, Learner
from guard.offline.evidence.compiled import gathering
from guard.offline.evidence.gather import Gather, distinct
from guard.offline.evidence.needs import Evidence, Image, Logits, Need
from guard.offline.model.classifier import Classifier

BATCH = 128
VALUES = BATCH * 3 * 32 * 32  # of a batch at most: all evidence of large images would not fit into a small memory
Progress = Callable[[int, int], None]  # (items done, items in all)
# What to ask for, and unit-space images [item, ...], none perhaps -> their evidence.
Gathered = Callable[[Sequence[Need], NDArray[np.float32]], Evidence]


def batch_items(shape: Sequence[int]) -> int:
    """How many items are gathered or read at once: fewer where an item has many values."""
    return max(4, min(BATCH, VALUES // int(np.prod(shape))))


def one_batch(images: NDArray[np.float32]) -> Tensor:
    """The first of them, as many as are gathered at once."""
    return torch.from_numpy(images[: batch_items(images.shape[1:])])


def gather_all(gather: Gather, images: NDArray[np.float32], progress: Progress | None = None) -> Evidence:
    """Evidence of unit-space images [item, ...], computed in batches."""
    if not len(images):
        raise DataError("no items to gather evidence from")
    parts: list[Evidence] = []
    gathered, size = gathering(gather, images), batch_items(images.shape[1:])
    for start in range(0, len(images), size):
        parts.append(gathered(images[start : start + size]))
        if progress:
            progress(min(start + size, len(images)), len(images))
    return {need: torch.cat([part[need] for part in parts]) for need in parts[0]}


@dataclass(frozen=True, eq=False)
class Items:
    """What heads are fitted on: clean, noisy and attacked unit-space images [item, ...]."""

    clean: NDArray[np.float32]
    labels: NDArray[np.int64]
    noisy: NDArray[np.float32]
    attacked: NDArray[np.float32]
    attacks: tuple[str, ...]  # [item] of the attacked ones

    def unattacked(self) -> Items:
        """The clean ones alone."""
        return Items(self.clean, self.labels, self.noisy[:0], self.attacked[:0], ())

    def some(self, most: int | None, seed: int) -> Items:
        """At most so many of each kind, drawn evenly."""
        if most is None:
            return self
        draw = np.random.default_rng(seed)
        clean, noisy, attacked = (
            np.sort(draw.permutation(len(images))[:most]) for images in (self.clean, self.noisy, self.attacked)
        )
        attacks = tuple(self.attacks[i] for i in attacked)
        return Items(self.clean[clean], self.labels[clean], self.noisy[noisy], self.attacked[attacked], attacks)


def fit_heads(
    detectors: Sequence[Detector],
    items: Items,
    gathered: Gathered,
    *,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, Head]:
    """Fit every detector; those that have to find out what to ask for do so first. Raises DataError."""

    def ask(needs: Sequence[Need], *, most: int | None = None, clean_only: bool = False) -> Examples:
        some = (items.unattacked() if clean_only else items).some(most, seed)
        clean, noisy, attacked = (gathered(needs, images) for images in (some.clean, some.noisy, some.attacked))
        return Examples(clean, torch.from_numpy(some.labels), noisy, attacked, some.attacks, seed)

    settled = []
    for detector in detectors:
        report(f"{detector.name}: what to ask")
        settled.append(detector.learn(ask) if isinstance(detector, Learner) else detector)
    report("evidence")
    examples = ask(distinct(need for detector in settled for need in detector.needs))
    heads = {}
    for detector in settled:
        report(detector.name)
        heads[detector.name] = detector.fit(examples)
    return heads


def settled(programs: Mapping[str, Sequence[Detector]], heads: Mapping[str, Head]) -> dict[str, list[Detector]]:
    """The detectors of each program as they were fitted, their needs complete."""
    return {name: [heads[detector.name].detector for detector in detectors] for name, detectors in programs.items()}


class Remembered:
    """Evidence by need and by an item's content: gathered once, however often and for whomever it is asked."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.places: dict[Need, dict[bytes, int]] = {}
        self.values: dict[Need, Tensor] = {}

    def __call__(self, needs: Sequence[Need], images: NDArray[np.float32]) -> Evidence:
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        wanted = distinct([Image(), Logits(), *needs])
        fresh = [need for need in wanted if any(key not in self.places.get(need, {}) for key in keys)]
        if fresh:
            missing = {key: i for i, key in enumerate(keys) if any(key not in self.places.get(n, {}) for n in fresh)}
            self.add(fresh, list(missing), images[list(missing.values())])
        if not len(images):
            return self.nothing(wanted, images)
        held = [need for need in wanted if need != Image()]
        found = {need: self.values[need][[self.places[need][key] for key in keys]] for need in held}
        return {Image(): torch.from_numpy(images), **found}

    def add(self, needs: Sequence[Need], keys: Sequence[bytes], images: NDArray[np.float32]) -> None:
        found = gather_all(Gather(self.classifier, needs), images)
        for need in needs:
            places = self.places.setdefault(need, {})
            if need == Image():
                places |= dict.fromkeys(keys, 0)
                continue
            held = self.values.get(need, found[need][:0])
            places |= {key: len(held) + i for i, key in enumerate(keys)}  # one met again takes its new place
            self.values[need] = torch.cat([held, found[need]])

    def nothing(self, needs: Sequence[Need], images: NDArray[np.float32]) -> Evidence:
        """Evidence of no item."""
        one = np.zeros((1, *images.shape[1:]), dtype=np.float32)
        with torch.no_grad():
            return {need: value[:0] for need, value in Gather(self.classifier, needs)(torch.from_numpy(one)).items()}


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
