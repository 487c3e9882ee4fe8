"""Attack together with what it has learned, so that it can be called as any other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guard.offline.attacks.attack import Family, LearningAttack, Traits
from guard.offline.attacks.model import Model
from guard.offline.attacks.ranges import Amount, as_learned
from guard.offline.data.norms import Measure
from guard.offline.networks.weights import Knowledge


@dataclass(frozen=True, repr=False, eq=False)
class Informed:
    """Attack with its knowledge; it prints as the attack did before it learned."""

    attack: LearningAttack
    knowledge: Knowledge

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def family(self) -> Family:
        return self.attack.family

    @property
    def norm(self) -> Measure:
        return self.attack.norm

    @property
    def budget(self) -> Amount | None:
        return as_learned(self.attack, self.knowledge).budget

    @property
    def traits(self) -> Traits:
        return replace(self.attack.traits, learns=False)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.attack.informed(self.knowledge, model, inputs, labels, generator)

    def __repr__(self) -> str:
        return repr(self.attack)


def untaught(attack: object) -> ValueError:
    """Return the error that a LearningAttack raises when it is called without having learned."""
    return ValueError(
        f"{attack!r} has not learned yet; call Informed(attack, attack.learn(...)) instead, as craft does"
    )
