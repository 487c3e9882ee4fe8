"""Common part of the denoisers that are networks of the guard's own, trained before they clean anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.networks.weights import digest_of, knowledge_of

MIN_CLEAN_ITEMS, MIN_ATTACKED_ITEMS = 20, 20  # below that a network learns nothing


@dataclass(frozen=True, eq=False)
class DenoiserLessons:
    """Items that a denoiser learns from, in unit space, and the model that it will clean for.

    `autoencoders` holds those that detectors have trained on the same clean items, by noise and epochs, so that none is
    trained twice.
    """

    clean: Tensor  # [item, ...]
    labels: Tensor  # [item] true classes
    attacked: Tensor  # [pair, ...] what an attack made
    originals: Tensor  # [pair, ...] of these clean items
    model: Callable[[Tensor], Tensor]  # unit-space items [item, ...] -> logits [item, class]
    seed: int
    autoencoders: Mapping[tuple[float, int], nn.Module] = field(default_factory=dict)

    def check(self, denoiser: str, *, pairs: bool) -> None:
        """Raise DataError where the items, or what attacks made of them, are too few to learn from."""
        if len(self.clean) < MIN_CLEAN_ITEMS:
            raise DataError(
                f"{denoiser} learns from clean items; got {len(self.clean)}, wanted at least {MIN_CLEAN_ITEMS}"
            )
        if pairs and len(self.attacked) < MIN_ATTACKED_ITEMS:
            raise DataError(
                f"{denoiser} learns from attacked items; got {len(self.attacked)}, wanted at least "
                f"{MIN_ATTACKED_ITEMS}: give more data, or a recipe with attacks that succeed"
            )


@dataclass(frozen=True)
class Trained:
    """A trained network; two are equal where their weights are."""

    digest: str  # SHA-256 (hex) of the weights
    network: nn.Module = field(compare=False, repr=False)


@dataclass(frozen=True)
class Learned(ABC):
    """Denoiser with a network that `learn` trains; until then it cannot clean. It prints without its weights."""

    trained: Trained | None = field(default=None, repr=False, kw_only=True)

    def learn(self, lessons: DenoiserLessons) -> Self:
        """Return the denoiser with its network. Raises DataError where the lessons do not suffice."""
        network = self.train(lessons)
        return replace(self, trained=Trained(digest_of(knowledge_of(network)), network))

    @abstractmethod
    def train(self, lessons: DenoiserLessons) -> nn.Module:
        """Return a frozen network, trained on these lessons."""

    @property
    def network(self) -> nn.Module:
        """The trained network. Raises DataError before there is one."""
        if self.trained is None:
            raise DataError(f"{self!r} has learned nothing yet; learn() comes before it can clean")
        return self.trained.network
