"""SafetyNet: does a kernel machine over a coarse code of the last layer call the item attacked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.deviation import spread_of
from guard.offline.data.enough import check_attacked
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kernel_machine import KernelMachine, fit_machine
from guard.offline.detectors.parts.supervision import item_weights
from guard.offline.evidence.kinds.plain import Latent
from guard.offline.evidence.needs import Evidence

EDGE_SHARE = 0.02  # of a neuron's spread: within it of a threshold a code goes from one level to the next
SMOOTH_SHARE = 0.5  # of a neuron's spread: the width of the sigmoid that an attacker differentiates instead


@dataclass(frozen=True)
class SafetyNet:
    """Detector that runs a kernel machine over the last layer's neurons, each told by few levels alone.

    Thresholds are even quantiles of a neuron over clean items. A code changes along a short ramp rather than at a
    point, so that rounding in another runtime changes nothing.

    Source: Lu et al. 2017, arXiv:1704.00103, section 3.
    """

    name: ClassVar[str] = "safetynet"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("levels of a neuron", "a sigmoid at each threshold"),)

    latent: Latent
    thresholds: int = 2  # of each neuron: a level more

    @property
    def needs(self) -> tuple[Latent, ...]:
        return (self.latent,)

    def fit(self, examples: Examples) -> SafetyNetHead:
        check_attacked(self.name, examples.count_attacked())
        clean, noisy = examples.clean[self.latent], examples.noisy[self.latent]
        numbers = torch.cat([clean, noisy, examples.attacked.items[self.latent]])
        levels = torch.linspace(0, 1, self.thresholds + 2)[1:-1]
        coder = Coder(clean.quantile(levels, dim=0), spread_of(clean, finest=EDGE_SHARE))
        attacked = torch.arange(len(numbers)) >= len(clean) + len(noisy)
        weights = item_weights(len(clean), len(noisy), examples.attacked)
        return SafetyNetHead(self, coder, fit_machine(coder(numbers), attacked, weights, examples.generator))

    def restore(self, state: Mapping[str, Tensor]) -> SafetyNetHead:
        coder = Coder(state["coder.thresholds"], state["coder.spread"])
        names = ("vectors", "coefficients", "bias", "gamma")
        return SafetyNetHead(self, coder, KernelMachine(*(state[f"machine.{name}"] for name in names)))


class Coder(torch.nn.Module):
    """Module that maps neurons [item, feature] to how many of their thresholds each exceeds [item, feature]."""

    def __init__(self, thresholds: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("thresholds", thresholds)  # [threshold, feature]
        self.register_buffer("spread", spread)  # [feature]
        self.thresholds: Tensor
        self.spread: Tensor

    def forward(self, neurons: Tensor) -> Tensor:
        over = (neurons[:, None] - self.thresholds) / self.spread
        code = (over / EDGE_SHARE).clamp(0.0, 1.0).sum(dim=1)
        if not neurons.requires_grad:
            return code
        smooth = torch.sigmoid(over / SMOOTH_SHARE).sum(dim=1)
        return code.detach() + (smooth - smooth.detach())


class SafetyNetHead(Head):
    def __init__(self, detector: SafetyNet, coder: Coder, machine: KernelMachine) -> None:
        super().__init__(detector)
        self.latent, self.coder, self.machine = detector.latent, coder, machine

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the machine's decision [item]; larger is more suspicious, above 0 means "attacked"."""
        score: Tensor = self.machine(self.coder(evidence[self.latent]))
        return score


def safetynet(taps: Sequence[str], *, thresholds: int = 2) -> Detector:
    if thresholds < 1:
        raise ValueError(f"thresholds = {thresholds}; wanted at least one of each neuron")
    return SafetyNet(Latent(taps[-1]), thresholds)
