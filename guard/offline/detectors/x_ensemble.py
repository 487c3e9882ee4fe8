"""X-Ensemble's detector: a small network for each interpretation of the answer, and a random forest over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from guard.offline.data.enough import check_attacked
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.forest import Forest, fitted_forest, forest_of
from guard.offline.detectors.parts.kind_network import (
    KindNetwork,
    Learning,
    fit_targets,
    restored_kinds,
)
from guard.offline.detectors.parts.settings import one_of
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, odds_of_attack
from guard.offline.detectors.saliency_classifier import root_mean_square
from guard.offline.evidence.kinds.backward_rules import GuidedGradient
from guard.offline.evidence.kinds.gradients import InputGradient, Objective
from guard.offline.evidence.kinds.integrated_gradients import IntegratedGradients
from guard.offline.evidence.kinds.plain import Image
from guard.offline.evidence.needs import Evidence, Need, take

FOREST_SHARE = 0.3  # of the items: kept from the networks, for the forest to learn how far they are to be trusted


@dataclass(frozen=True)
class XEnsemble:
    """Detector that asks a network for each of image, gradient, guided backpropagation and Integrated Gradients.

    Each names the kind of item; a random forest over all their answers gives the share of trees that say "attacked". A
    map is scaled to unit root mean square, whose logarithm is given to the forest beside.

    Source: Wang et al. 2020, KDD, "Interpretability is a kind of safety", section 3.2. Their Integrated Gradients take
    many steps, ours 4; their networks are VGG-11.
    """

    name: ClassVar[str] = "x_ensemble"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("random forest", "the mean log-odds of the networks below it, over 10"),
    )

    of: Objective = "margin"
    steps: int = 4  # of Integrated Gradients
    trees: int = 50
    depth: int = 4
    learning: Learning = field(default_factory=Learning)

    @property
    def needs(self) -> tuple[Image | InputGradient | GuidedGradient | IntegratedGradients, ...]:
        integrated = IntegratedGradients(self.steps, of=self.of)
        return (Image(), InputGradient(self.of), GuidedGradient(self.of), integrated)

    def fit(self, examples: Examples) -> XEnsembleHead:
        check_attacked(self.name, examples.count_attacked())
        clean, noisy, attacks = len(examples.clean[Image()]), len(examples.noisy[Image()]), examples.attacked
        evidence: dict[Need, Tensor] = {
            need: torch.cat([examples.negatives(need), attacks.items[need]]) for need in self.needs
        }
        kinds, weights = item_kinds(clean + noisy, attacks), item_weights(clean, noisy, attacks)
        mixed = torch.randperm(len(kinds), generator=examples.generator)
        kept, own = mixed[: int(FOREST_SHARE * len(mixed))], mixed[int(FOREST_SHARE * len(mixed)) :]
        networks = [
            fit_targets(scaled(need, evidence)[own], kinds[own], weights[own], self.learning, examples.seed)
            for need in self.needs
        ]
        head = XEnsembleHead(self, networks, None)
        with torch.no_grad():
            answers = head.answers(take(evidence, kept))
        forest = fitted_forest(
            answers, kinds[kept] > 0, weights[kept], trees=self.trees, depth=self.depth, seed=examples.seed
        )
        return XEnsembleHead(self, networks, forest_of(forest))

    def restore(self, state: Mapping[str, Tensor]) -> XEnsembleHead:
        networks = [restored_kinds(state, f"networks.{place}.") for place in range(len(self.needs))]
        names = ("features", "thresholds", "signs", "lefts", "shares")
        return XEnsembleHead(self, networks, Forest(*(state[f"forest.{name}"] for name in names)))


class XEnsembleHead(Head):
    def __init__(self, detector: XEnsemble, networks: Sequence[KindNetwork], forest: Forest | None) -> None:
        super().__init__(detector)
        self.asked = detector.needs
        self.networks = nn.ModuleList(networks)
        self.forest = forest

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the share of trees that say "attacked" [item], 0 to 1; larger is more suspicious."""
        answers = self.answers(evidence)
        if self.forest is None:
            raise TypeError("x_ensemble has no forest yet")
        share: Tensor = self.forest(answers)
        if not answers.requires_grad:
            return share
        odds = torch.stack([odds_of_attack(part) for part in self.each(answers)]).mean(dim=0) / 10
        return share.detach() + (odds - odds.detach())

    def each(self, answers: Tensor) -> Sequence[Tensor]:
        """Return the log-probabilities of each network [item, kind]."""
        maps = len(self.asked)
        return answers[:, maps:].chunk(maps, dim=1)

    def answers(self, evidence: Evidence) -> Tensor:
        """Return what the forest sees: the size of each map, then each network's log-probabilities [item, number]."""
        sizes = [root_mean_square(evidence[need]).log()[:, None] for need in self.asked]
        pairs = zip(self.asked, self.networks, strict=True)
        logs = [network(scaled(need, evidence)).log_softmax(dim=1) for need, network in pairs]
        return torch.cat([*sizes, *logs], dim=1)


def scaled(need: Need, evidence: Evidence) -> Tensor:
    """Return a map scaled to unit root mean square [shape of the input]; the item itself as it is."""
    value = evidence[need]
    return value if need == Image() else value / root_mean_square(value).reshape(-1, *[1] * (value.ndim - 1))


def x_ensemble(
    taps: Sequence[str],
    *,
    of: Objective = "margin",
    steps: int = 4,
    trees: int = 50,
    depth: int = 4,
    width: int = 16,
    epochs: int = 12,
    learning_rate: float = 3e-3,
) -> Detector:
    """Build the detector. `steps` are those of Integrated Gradients, each a forward and a backward."""
    del taps
    one_of("of", of, Objective)
    return XEnsemble(of, steps, trees, depth, Learning(width, epochs, learning_rate))
