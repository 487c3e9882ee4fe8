"""Layer regression: do the earlier layers look as the last one lets expect?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.offline.data.deviation import spread_of
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kind_network import MAX_DEVIATIONS, Learning
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.training import train

MIN_SHARE_OF_LAYER = 0.01  # of the median spread of a layer's features: what hardly fires on clean items is not read


@dataclass(frozen=True)
class LayerRegression:
    """Detector that scores how badly small networks predict each earlier layer of clean items from the last one.

    The logarithm of the mean squared error over layers, each feature in its own clean spread. An attack moves the last
    layers far and the first ones little. No attack is needed to fit it. A feature that is as good as constant is left
    out: the few clean items on which it does fire would be all of the tail. A model with one tap has it predicted from
    the logits.

    Source: "A Few Large Shifts", 2025 (AFLS-AED), its regression test. Their factor of the errors' entropy over layers
    is left out, and so is their test by transformations of the input, four forwards more.
    """

    name: ClassVar[str] = "layer_regression"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    last: Latent | Logits
    earlier: tuple[Latent, ...]
    learning: Learning = field(default_factory=lambda: Learning(width=128, epochs=40))

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (self.last, *self.earlier)

    def fit(self, examples: Examples) -> LayerRegressionHead:
        last = examples.clean[self.last]
        sizes = [examples.clean[latent].shape[1] for latent in self.earlier]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(examples.seed)
            head = LayerRegressionHead(self, last.shape[1], sizes)
            head.measure(examples.clean)
            targets = head.targets(examples.clean)

            def loss(index: Tensor) -> Tensor:
                return (head.predicted(last[index]) - targets[index]).square().mean()

            train(head.body, len(last), loss, self.learning.schedule)
        return head.eval().requires_grad_(False)

    def restore(self, state: Mapping[str, Tensor]) -> LayerRegressionHead:
        sizes = [int(size) for size in state["sizes"]]
        head = LayerRegressionHead(self, state["body.0.weight"].shape[1], sizes)
        head.load_state_dict(dict(state))
        return head.eval().requires_grad_(False)


class LayerRegressionHead(Head):
    def __init__(self, detector: LayerRegression, features: int, sizes: Sequence[int]) -> None:
        super().__init__(detector)
        self.last, self.earlier, width = detector.last, detector.earlier, detector.learning.width
        self.body = nn.Sequential(
            *(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, sum(sizes))),
        )
        self.register_buffer("sizes", torch.tensor(sizes))  # features of each earlier layer
        for name, count in (("last", features), ("earlier", sum(sizes))):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_spread", torch.ones(count))
        self.register_buffer("shares", torch.cat([torch.full((size,), 1 / (size * len(sizes))) for size in sizes]))
        self.last_mean: Tensor
        self.last_spread: Tensor
        self.earlier_mean: Tensor
        self.earlier_spread: Tensor
        self.shares: Tensor

    def measure(self, clean: Evidence) -> None:
        """Take means and spreads from clean items."""
        for name, values in (("last", clean[self.last]), ("earlier", self.joined(clean))):
            self.get_buffer(f"{name}_mean").copy_(values.mean(dim=0))
            self.get_buffer(f"{name}_spread").copy_(spread_of(values))
        spreads = [values.std(dim=0) for values in (clean[latent] for latent in self.earlier)]
        counted = [(spread >= MIN_SHARE_OF_LAYER * spread.median()).to(spread.dtype) for spread in spreads]
        self.shares.copy_(torch.cat([part / (part.sum() * len(counted)) for part in counted]))

    def joined(self, evidence: Evidence) -> Tensor:
        return torch.cat([evidence[latent] for latent in self.earlier], dim=1)

    def targets(self, evidence: Evidence) -> Tensor:
        """Return the earlier layers in their clean spread [item, feature], cut where hardly a clean item lies."""
        away = (self.joined(evidence) - self.earlier_mean) / self.earlier_spread
        return away.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    def predicted(self, last: Tensor) -> Tensor:
        """Return what the last layer [item, feature] lets expect of `targets`."""
        found: Tensor = self.body((last - self.last_mean) / self.last_spread)
        return found

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the logarithm of the mean squared error [item]; larger is more suspicious."""
        away = self.predicted(evidence[self.last]) - self.targets(evidence)
        return (away.square() @ self.shares + 1e-6).log()


def layer_regression(taps: Sequence[str], *, width: int = 128, epochs: int = 40) -> Detector:
    latents = tuple(Latent(tap) for tap in taps)
    learning = Learning(width, epochs)
    if len(latents) > 1:
        return LayerRegression(latents[-1], latents[:-1], learning)
    return LayerRegression(Logits(), latents, learning)
