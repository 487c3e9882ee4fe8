"""R+FGSM: a random step first, out of the place where the gradient is masked, then FGSM with what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Family, Traits, call_text, more_than_zero
from guard.offline.attacks.methods.fgsm import fgsm
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import Size, into_reach, spread
from guard.offline.attacks.ranges import Amount, settled, take_ranges
from guard.offline.attacks.target import Target, known_target, targets_of
from guard.offline.data.norms import Measure


def rfgsm(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: Size,
    generator: torch.Generator,
    random_share: float = 0.5,
    targets: Tensor | None = None,
) -> Tensor:
    """Take a random sign step of `random_share` of the budget, and an FGSM step of the rest; L-infinity.

    On a linear model it is weaker than FGSM by the share that it spends at random.

    Source: Tramèr et al. 2018, arXiv:1705.07204, equation 7.
    """
    coin = torch.randn(inputs.shape, generator=generator, device=generator.device, dtype=inputs.dtype).sign()
    first = into_reach(inputs + random_share * spread(budget, inputs) * coin.to(inputs.device), inputs, budget, "linf")
    return into_reach(
        fgsm(model, first, labels, budget=(1 - random_share) * budget, targets=targets), inputs, budget, "linf"
    )


@dataclass(frozen=True, repr=False)
class Rfgsm:
    """R+FGSM as a value: a random step, then FGSM."""

    name: ClassVar[str] = "rfgsm"
    family: ClassVar[Family] = Family.SINGLE_STEP
    norm: ClassVar[Measure] = "linf"
    traits: ClassVar[Traits] = Traits(ranges=("budget",), draws_for_batch=True)

    budget: Amount
    random_share: float = 0.5
    target: Target | None = None

    def __post_init__(self) -> None:
        take_ranges(self)
        more_than_zero(self, "budget", "random_share")
        if self.random_share >= 1:
            raise ConfigError(
                f"attack {self.name!r}: random_share = {self.random_share!r}; wanted less than 1: nothing is left for "
                "the step along the gradient"
            )
        known_target(self)

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        targets = targets_of(self.target, model, inputs, labels, generator)
        return rfgsm(
            model,
            inputs,
            labels,
            budget=settled(self.budget),
            random_share=self.random_share,
            generator=generator,
            targets=targets,
        )

    def __repr__(self) -> str:
        return call_text(self)
