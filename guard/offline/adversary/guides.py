"""Guides of feature matching: clean items of other classes, towards whose evidence an attacked item is driven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence, Need

BATCH_ITEMS = 32
SUSPICIOUS_PENALTY, OTHER_CLASS_PENALTY, OWN_CLASS_PENALTY = (
    1e3,
    1e6,
    1e9,
)  # penalties on a guide's distance, each far above the one before


class Opened(Protocol):
    """Guard that gives its evidence before it judges it."""

    def evidence(self, images: Tensor, /) -> Evidence:
        """Gather the evidence of unit-space images [item, ...]."""
        ...

    def judge(self, evidence: Evidence, /) -> tuple[Tensor, Tensor]:
        """Return the logits [item, class] and the excess [item, rate] that follow from this evidence."""
        ...


@dataclass(frozen=True)
class Guide:
    """Reference evidence for each attacked item, and the variance of each kind of evidence among all guides."""

    known: Opened  # the guard that the evidence is of
    reference: Mapping[Need, Tensor]  # [item, feature]
    variance: Mapping[Need, Tensor]  # mean squared distance of a guide from the guides' mean

    def distance(self, evidence: Evidence) -> Tensor:
        """Return the mean squared distance [item] over the kinds of evidence, each divided by its variance."""
        parts = [(evidence[n] - r).square().sum(dim=1) / self.variance[n] for n, r in self.reference.items()]
        return torch.stack(parts).mean(dim=0)

    def take(self, index: Tensor) -> Guide:
        return replace(self, reference={need: values[index] for need, values in self.reference.items()})


@dataclass(frozen=True)
class Guides:
    """Clean items that the model classifies correctly, with their evidence of comparable kinds."""

    known: Opened  # the guard that the evidence is of
    evidence: Mapping[Need, Tensor]  # [guide, feature]
    labels: Tensor  # [guide]
    passing: Tensor  # [guide] bool: the guard lets it through

    @staticmethod
    def of(known: Opened, images: Tensor, labels: Tensor) -> Guides:
        """Gather the guides' evidence. Raises ValueError for fewer than two: their variance would be unknown."""
        if len(labels) < 2:
            raise ValueError(f"feature matching needs at least two clean items as guides; got {len(labels)}")
        parts: list[dict[Need, Tensor]] = []
        passing: list[Tensor] = []
        with torch.no_grad():
            for batch in images.split(BATCH_ITEMS):
                found = known.evidence(batch)
                parts.append({need: value for need, value in found.items() if need.comparable})
                passing.append(known.judge(found)[1][:, 0] < 0)
        evidence = {need: torch.cat([part[need] for part in parts]) for need in parts[0]}
        return Guides(known, evidence, labels, torch.cat(passing))

    def choose(self, evidence: Evidence, labels: Tensor) -> Guide:
        """Return for each item the nearest guide of its likeliest wrong class, one that passes the guard if any does.

        Where no guide is of that class, it is the nearest of any class but the item's own.
        """
        own = torch.nn.functional.one_hot(labels, evidence[Logits()].shape[1]).bool()
        leaning = evidence[Logits()].masked_fill(own, -torch.inf).argmax(dim=1)
        variance = self.variance()
        distance = torch.stack(
            [torch.cdist(evidence[n], g).square() / variance[n] for n, g in self.evidence.items()]
        ).mean(dim=0)
        cost = distance.double() + SUSPICIOUS_PENALTY * ~self.passing
        cost = (
            cost
            + OTHER_CLASS_PENALTY * (self.labels != leaning[:, None])
            + OWN_CLASS_PENALTY * (self.labels == labels[:, None])
        )
        chosen = cost.argmin(dim=1)
        return Guide(self.known, {need: values[chosen] for need, values in self.evidence.items()}, variance)

    def variance(self) -> Mapping[Need, Tensor]:
        return {n: (g - g.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-12) for n, g in self.evidence.items()}
