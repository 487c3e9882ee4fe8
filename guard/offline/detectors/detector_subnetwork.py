"""Detector subnetwork: a small network on a map in the middle of the model that learns what attacks make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.enough import check_attacked
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kind_network import (
    KindNetwork,
    Learning,
    restored_kinds,
)
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss
from guard.offline.evidence.kinds.plain import FeatureMap
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.training import train


@dataclass(frozen=True)
class DetectorSubnetwork:
    """Detector that reads a feature map as it is, not averaged, and learns against an adversary of its own.

    While it learns, every attacked item's map is moved by one step along the sign of the gradient that lowers its odds,
    a random share of `budget` spreads of each channel long, so that it does not lean on what is easily hidden.

    Source: Metzen et al. 2017, arXiv:1702.04267, sections 3 and 4. Their dynamic adversary moves the input, through
    model and detector at once; a detector here does not see the model, so ours moves the map.
    """

    name: ClassVar[str] = "detector_subnetwork"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    map: FeatureMap
    budget: float = 0.1  # spreads of a channel that the adversary moves a map by at most; 0: no adversary
    learning: Learning = field(default_factory=Learning)

    @property
    def needs(self) -> tuple[FeatureMap, ...]:
        return (self.map,)

    def fit(self, examples: Examples) -> DetectorSubnetworkHead:
        check_attacked(self.name, examples.count_attacked())
        parts = [one[self.map] for one in (examples.clean, examples.noisy, examples.attacked.items)]
        maps, clean, noisy = torch.cat(parts), len(parts[0]), len(parts[1])
        kinds, weights = item_kinds(clean + noisy, examples.attacked), item_weights(clean, noisy, examples.attacked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(examples.seed)
            network = KindNetwork(tuple(maps.shape[1:]), self.learning.width, int(kinds.max()) + 1)
            network.measure(maps)

            def loss(index: Tensor) -> Tensor:
                moved = hidden(network, maps[index], kinds[index] > 0, self.budget)
                return kind_loss(network(moved), kinds[index], weights[index])

            train(network, len(maps), loss, self.learning.schedule)
        return DetectorSubnetworkHead(self, network.eval().requires_grad_(False))

    def restore(self, state: Mapping[str, Tensor]) -> DetectorSubnetworkHead:
        return DetectorSubnetworkHead(self, restored_kinds(state, "network."))


class DetectorSubnetworkHead(Head):
    def __init__(self, detector: DetectorSubnetwork, network: KindNetwork) -> None:
        super().__init__(detector)
        self.map, self.network = detector.map, network

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return self.network.odds(evidence[self.map])


def hidden(network: KindNetwork, maps: Tensor, attacked: Tensor, budget: float) -> Tensor:
    """Return maps [item, ...] of which those attacked [item] are moved to where the network suspects them less."""
    if not budget or not bool(attacked.any()):
        return maps
    point = maps.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network.odds(point).sum(), point)
    each = (-1, *[1] * (maps.ndim - 1))
    share = torch.rand(len(maps)).reshape(each) * attacked.reshape(each)
    return maps - budget * share * network.spread * slope.sign()


def detector_subnetwork(
    taps: Sequence[str],
    *,
    tap: str | None = None,
    budget: float = 0.1,
    width: int = 16,
    epochs: int = 12,
    learning_rate: float = 3e-3,
) -> Detector:
    """Build the detector. `tap` is the layer that it reads: the middle one of those tapped unless given."""
    if tap is not None and tap not in taps:
        raise ValueError(f"tap = {tap!r}; the model has no such layer, but {', '.join(taps)}")
    chosen = taps[(len(taps) - 1) // 2] if tap is None else tap
    return DetectorSubnetwork(FeatureMap(chosen), budget, Learning(width, epochs, learning_rate))
