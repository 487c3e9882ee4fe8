"""ML-LOO: do answer and layers scatter more where parts of the item are left out, one after the other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.answers import named_of
from guard.offline.detectors.parts.logistic import Logistic, fit_logistic
from guard.offline.evidence.kinds.left_out import Patches, PatchLatent, PatchLogits
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence


@dataclass(frozen=True)
class MlLoo:
    """Detector that weighs how widely each neuron's leave-one-out attributions scatter, from quartile to quartile.

    Of the predicted class's probability and of every neuron at every tap the interquartile range over the parts,
    weighed by a logistic regression on attacked items; without any, their mean.

    Source: Yang et al. 2020, arXiv:1906.03499, sections 3 and 4. They leave out each value by itself, 3,073 forwards of
    a CIFAR image; ours are patches, one forward each. A range does not change with what is subtracted, so the answer to
    the whole item is not needed.
    """

    name: ClassVar[str] = "ml_loo"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("order of the parts by what they change", "this step's order, held"),
        StandIn("class that the model names", "this step's class, held"),
    )

    taps: tuple[str, ...]
    patches: Patches = field(default_factory=Patches)

    @property
    def needs(self) -> tuple[Logits | PatchLogits | PatchLatent, ...]:
        return (Logits(), PatchLogits(self.patches), *(PatchLatent(tap, self.patches) for tap in self.taps))

    def fit(self, examples: Examples) -> MlLooHead:
        parts = [ranges(self, evidence) for evidence in (examples.clean, examples.noisy, examples.attacked.items)]
        return MlLooHead(self, fit_logistic(parts[0], parts[1], examples.attacked.seen_as(parts[2])))

    def restore(self, state: Mapping[str, Tensor]) -> MlLooHead:
        head = MlLooHead(self, Logistic.mean(len(state["weighing.slopes"])))
        head.load_state_dict(dict(state))
        return head


class MlLooHead(Head):
    def __init__(self, detector: MlLoo, weighing: Logistic) -> None:
        super().__init__(detector)
        self.asked, self.weighing = detector, weighing

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        score: Tensor = self.weighing(ranges(self.asked, evidence))
        return score


def ranges(detector: MlLoo, evidence: Evidence) -> Tensor:
    """Return the interquartile range over parts of the named class's probability and of each neuron [item, number]."""
    logits = evidence[Logits()]
    named = named_of(logits).to(logits.dtype)
    believed = (evidence[PatchLogits(detector.patches)].softmax(dim=2) * named[:, None]).sum(dim=2, keepdim=True)
    layers = [evidence[PatchLatent(tap, detector.patches)] for tap in detector.taps]
    return interquartile_range(torch.cat([believed, *layers], dim=2))


def interquartile_range(values: Tensor) -> Tensor:
    """Return the range between quartiles over parts, linear between values: [item, part, number] -> [item, number]."""
    parts = values.shape[1]
    ordered = values.sort(dim=1).values
    ends = []
    for share in (0.25, 0.75):
        place = share * (parts - 1)
        below = int(place)
        above = min(below + 1, parts - 1)
        ends.append(ordered[:, below] + (place - below) * (ordered[:, above] - ordered[:, below]))
    return ends[1] - ends[0]


def ml_loo(taps: Sequence[str], *, patches: int = 16, value: float = 0.0) -> Detector:
    """Build the detector. `patches` is how many parts are left out, a square number; `value` what stands in for one."""
    return MlLoo(tuple(taps), Patches(patches, value))
