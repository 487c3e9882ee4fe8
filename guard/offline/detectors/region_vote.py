"""Region vote: do the points around the item stand behind the class that the model names for it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import DataError
from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Ask, Detector, Examples, Head
from guard.offline.detectors.parts.answers import belief, named_of
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.variants import NoisyLogits
from guard.offline.evidence.needs import Evidence

TRIED_SHARES = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)  # of the unit box: radii that are tried, largest first
LOST_SHARE = 0.01  # of clean items that the vote may have wrong where the model has them right
TRIED_ITEMS = 300  # clean items on which the radius is chosen


@dataclass(frozen=True)
class RegionVote:
    """Detector that scores how little the mean answer around the item believes in the class named at the item.

    The radius is the largest of those tried at which the vote is right on as many clean items as the model, but for one
    in a hundred.

    Source: Cao and Gong 2017, arXiv:1709.05583, section 5. They count 10,000 votes; ours are 16 fixed points of the
    cube by default, and probabilities are averaged, since so few votes are nearly all alike.
    """

    name: ClassVar[str] = "region_vote"
    kinds: ClassVar[Kinds] = ALIKE
    learns: ClassVar[bool] = True
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    around: NoisyLogits = field(default_factory=NoisyLogits)
    chosen: bool = False  # whether the radius is settled; else `learn` chooses it

    @property
    def needs(self) -> tuple[Logits | NoisyLogits, ...]:
        return (Logits(), self.around)

    def learn(self, ask: Ask) -> RegionVote:
        """Choose the radius on clean items, unless the recipe gives one."""
        if self.chosen:
            return self
        tried = [replace(self.around, radius=radius) for radius in TRIED_SHARES]
        examples = ask([Logits(), *tried], most=TRIED_ITEMS, clean_only=True)
        if not len(examples.labels):
            raise DataError("region_vote chooses its radius on clean items; got none")
        clean, labels = examples.clean, examples.labels
        own = float((clean[Logits()].argmax(dim=1) == labels).float().mean())
        votes = [float((voted(clean[need]).argmax(dim=1) == labels).float().mean()) for need in tried]
        kept = [need for need, share in zip(tried, votes, strict=True) if share >= own - LOST_SHARE]
        return replace(self, around=kept[0] if kept else tried[-1], chosen=True)

    def fit(self, examples: Examples) -> RegionVoteHead:
        del examples  # what there was to learn, `learn` has learned
        return RegionVoteHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> RegionVoteHead:
        return RegionVoteHead(replace(self, around=replace(self.around, radius=float(state["radius"])), chosen=True))


class RegionVoteHead(Head):
    def __init__(self, detector: RegionVote) -> None:
        super().__init__(detector)
        self.around = detector.around
        self.register_buffer("radius", torch.tensor(detector.around.radius, dtype=torch.float64))

    def forward(self, evidence: Evidence) -> Tensor:
        """Return minus the log-odds [item] of the named class in the mean answer; larger is more suspicious."""
        logits = evidence[Logits()]
        named = named_of(logits).bool()
        return -belief(voted(evidence[self.around]), named)


def voted(answers: Tensor) -> Tensor:
    """Return the logarithm of the probabilities averaged over rows: logits [item, row, class] -> [item, class]."""
    return answers.log_softmax(dim=2).logsumexp(dim=1)


def region_vote(taps: Sequence[str], *, radius: float | None = None, rows: int = 16, seed: int = 0) -> Detector:
    """Build the detector. `radius` is in unit space; it is chosen on clean items unless given."""
    del taps
    own = NoisyLogits(rows=rows, seed=seed)
    return RegionVote(own) if radius is None else RegionVote(replace(own, radius=radius), chosen=True)
