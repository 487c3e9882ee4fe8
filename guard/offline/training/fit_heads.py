"""Gathers evidence in batches, fits the heads on it, and keeps them beside the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from guard.bundle import read_npz
from guard.offline.data.attacked import Attacked, chosen
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images
from guard.offline.detectors.detector import Detector, Examples, Head, learns
from guard.offline.evidence.cache import Gathered
from guard.offline.evidence.gather import distinct
from guard.offline.evidence.needs import Need
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import write_arrays


@dataclass(frozen=True, eq=False)
class FittingItems:
    """The items that heads are fitted on: clean, noisy and attacked, in unit space."""

    clean: Dataset
    noisy: Images
    attacked: Attacked[Images]

    def unattacked(self) -> FittingItems:
        """Return the clean items alone, without noisy and attacked ones."""
        return FittingItems(self.clean, self.noisy[:0], Attacked(self.attacked.items[:0], ()))

    def some(self, most: int | None, seed: int) -> FittingItems:
        """Return at most so many items of each kind, drawn evenly."""
        if most is None:
            return self
        draw = np.random.default_rng(seed)
        clean, noisy, attacked = (
            np.sort(draw.permutation(len(items))[:most]) for items in (self.clean, self.noisy, self.attacked)
        )
        return FittingItems(self.clean.take(clean), self.noisy[noisy], chosen(self.attacked, attacked))


def fit_heads(
    detectors: Sequence[Detector],
    items: FittingItems,
    gathered: Gathered,
    *,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, Head]:
    """Fit every detector, after those that learn which evidence they need have learned it. Raises DataError."""

    def ask(needs: Sequence[Need], *, most: int | None = None, clean_only: bool = False) -> Examples:
        some = (items.unattacked() if clean_only else items).some(most, seed)
        images = (some.clean.images[:], some.noisy, some.attacked.items)
        clean, noisy, attacked = (gathered(needs, part) for part in images)
        return Examples(clean, torch.from_numpy(some.clean.labels), noisy, some.attacked.seen_as(attacked), seed)

    settled = []
    for detector in detectors:
        report(f"{detector.name}: what to ask")
        settled.append(detector.learn(ask) if learns(detector) else detector)
    report("evidence")
    examples = ask(distinct(need for detector in settled for need in detector.needs))
    heads = {}
    for detector in settled:
        report(detector.name)
        heads[detector.name] = detector.fit(examples)
    return heads


def settled(programs: Mapping[str, Sequence[Detector]], heads: Mapping[str, Head]) -> dict[str, list[Detector]]:
    """Return the detectors of each program as they were fitted, their needs complete."""
    return {name: [heads[detector.name].detector for detector in detectors] for name, detectors in programs.items()}


def save_heads(heads: Mapping[str, Head], work: WorkDirectory) -> None:
    """Save each head as an .npz of its own, without pickle."""
    for name, head in heads.items():
        write_arrays(work.head(name), {key: value.detach().numpy() for key, value in head.state_dict().items()})


def load_heads(detectors: Sequence[Detector], work: WorkDirectory) -> dict[str, Head]:
    """Load the heads of these detectors. Raises BundleError where a head is missing or damaged."""
    heads = {}
    for detector in detectors:
        state = {
            key: torch.from_numpy(np.ascontiguousarray(value))
            for key, value in read_npz(work.head(detector.name)).items()
        }
        heads[detector.name] = detector.restore(state)
    return heads
