"""Common part of the denoisers that are networks of the guard's own, trained before they clean anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.data.enough import check_attacked, check_clean
from guard.offline.networks.weights import digest_of, knowledge_of


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
        check_clean(denoiser, len(self.clean))
        if pairs:
            check_attacked(denoiser, len(self.attacked))


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
