"""Attribute steering: does the answer hold when the neurons behind it are strengthened and the others weakened?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from guard.calibration import auroc
from guard.errors import DataError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Ask, Detector, Examples, Head
from guard.offline.detectors.parts.answers import belief, named_of
from guard.offline.evidence.kinds.plain import ChannelAttribution, Logits
from guard.offline.evidence.kinds.variants import SteeredLogits
from guard.offline.evidence.needs import Evidence
from guard.offline.evidence.steering import Critical, Steering, Strength

TRIED = tuple(Strength(*values) for values in product((100.0, 10.0, 1.0, 0.3), (1.0, 1.15), (60.0,)))
TRIED_ITEMS = 300  # items of each kind on which the strength is chosen


@dataclass(frozen=True)
class AttributeSteering:
    """Detector that scores how much less the model believes in its answer after steering.

    Critical channels of a class are those whose gradient times activation, averaged over the clean items of the class,
    is largest. The strength of the pull is chosen on attacked items (without any: the published constants).

    Source: Tao et al. 2018, arXiv:1810.11580, section 3. Their witnesses are found by swapping parts of faces; ours by
    attribution, for every class. They raise an alarm when the label changes; our score counts the distribution as well.
    """

    name: ClassVar[str] = "attribute_steering"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = True
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    taps: tuple[str, ...]
    share: float = 0.25  # of a tap's channels: how many are critical for a class
    steering: Steering | None = field(default=None, repr=False)  # found by `learn`

    @property
    def needs(self) -> tuple[Logits | SteeredLogits, ...]:
        return (Logits(), *([SteeredLogits(self.steering)] if self.steering else []))

    def learn(self, ask: Ask) -> AttributeSteering:
        """Find the critical channels, then the strength that separates attacked from other items best."""
        examples = ask([Logits(), *(ChannelAttribution(tap) for tap in self.taps)], clean_only=True)
        classes = examples.clean[Logits()].shape[1]
        critical = tuple(
            critical_channels(examples.clean[ChannelAttribution(tap)], examples.labels, classes, self.share)
            for tap in self.taps
        )
        first = Steering(self.taps, critical)
        tried = [replace(self, steering=replace(first, strength=strength)) for strength in TRIED]
        examples = ask([need for one in tried for need in one.needs], most=TRIED_ITEMS)
        if examples.count_attacked() == 0:
            return replace(self, steering=first)
        return max(tried, key=lambda one: one.worth(examples))

    def worth(self, examples: Examples) -> float:
        """Return the AUROC between negatives and attacked items, averaged over attacks."""
        head = AttributeSteeringHead(self)
        negatives = torch.cat([head(examples.clean), head(examples.noisy)]).double().numpy()
        attacked = head(examples.attacked.items).double().numpy()
        attacks = examples.attacked.names
        return float(np.mean([auroc(negatives, attacked[attacks == attack]) for attack in np.unique(attacks)]))

    def fit(self, examples: Examples) -> AttributeSteeringHead:
        del examples  # what there was to learn, `learn` has learned
        return AttributeSteeringHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> AttributeSteeringHead:
        critical = tuple(Critical.of(state[f"critical_{place}"]) for place in range(len(self.taps)))
        strength = Strength(*(float(value) for value in state["strength"].double().tolist()))
        return AttributeSteeringHead(replace(self, steering=Steering(self.taps, critical, strength)))


class AttributeSteeringHead(Head):
    def __init__(self, detector: AttributeSteering) -> None:
        super().__init__(detector)
        if detector.steering is None:
            raise DataError("attribute_steering has not found its critical channels yet; learn() comes before fit()")
        self.steering = detector.steering
        for place, critical in enumerate(self.steering.critical):
            self.register_buffer(f"critical_{place}", critical.mask().bool())
        strength = self.steering.strength
        self.register_buffer(
            "strength", torch.tensor([strength.weaken, strength.strengthen, strength.reach], dtype=torch.float64)
        )

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds [item] of the predicted class, before less after steering; larger is more suspicious."""
        plain, steered = evidence[Logits()], evidence[SteeredLogits(self.steering)]
        named = named_of(plain).bool()
        return belief(plain, named) - belief(steered, named)


def critical_channels(attribution: Tensor, labels: Tensor, classes: int, share: float) -> Critical:
    """Return the channels that add most to each class; a class without items is judged by all items."""
    count = max(1, round(share * attribution.shape[1]))
    mask = torch.zeros(classes, attribution.shape[1])
    for number, row in enumerate(mask):
        members = attribution[labels == number]
        row[(members if len(members) else attribution).mean(dim=0).topk(count).indices] = 1.0
    return Critical.of(mask)


def attribute_steering(taps: Sequence[str], *, steered: Sequence[str] | None = None, share: float = 0.25) -> Detector:
    """Build the detector. `steered` are the taps to steer, in the order of the forward pass; all unless given."""
    if missing := [tap for tap in steered or () if tap not in taps]:
        raise ValueError(
            f"steered = {list(steered or ())}; the model has no layer {missing[0]!r}, but {', '.join(taps)}"
        )
    return AttributeSteering(tuple(taps if steered is None else steered), share)
