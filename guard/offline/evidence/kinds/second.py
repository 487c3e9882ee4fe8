"""Evidence from another network than the model: its logits on the item itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from guard.offline.evidence.needs import ForwardNeed, Need, Pass


@dataclass(frozen=True)
class SecondNetwork:
    """Another network, frozen: unit-space items [item, ...] -> its answers, as logits [item, class].

    Two are equal where name, weights and cost are, whatever module computes them.
    """

    name: str
    digest: str  # SHA-256 (hex) of all that decides its answers
    forwards: float  # its multiply-adds over the model's
    network: nn.Module = field(compare=False, repr=False)
    about: str = field(default="", compare=False, repr=False)  # where it comes from and how good it is, in words

    @property
    def in_words(self) -> str:
        return f"{self.name}: {self.about}; {self.forwards:.2g} forwards of the model"


@dataclass(frozen=True)
class NetworkNeed(ForwardNeed):
    """Common part of the needs that another network than the model meets, on the input itself.

    An attacker differentiates them as they are, resizing included: nothing stands in for any step.
    """

    rides: ClassVar[Pass] = "second"

    network: SecondNetwork

    @property
    def rows_per_item(self) -> int:
        return 0

    @property
    def forwards(self) -> float:
        return self.network.forwards

    def read(self, images: Tensor) -> Tensor:
        """Return the network's answers [item, ...] to unit-space images [item, ...]."""
        answers: Tensor = self.network.network(images)
        return answers


@dataclass(frozen=True)
class SecondLogits(NetworkNeed):
    """Logits of a second network [item, class] on the input itself: the guard's only evidence of its own eyes."""

    @property
    def opinion(self) -> str:
        """The name that this answer has where a verdict is explained."""
        return f"second: {self.network.name}"


def networks_of(needs: Iterable[Need]) -> tuple[SecondNetwork, ...]:
    """Return the second networks that needs ask, each once."""
    return tuple(dict.fromkeys(need.network for need in needs if isinstance(need, SecondLogits)))
