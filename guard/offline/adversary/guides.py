"""Clean items of other classes, towards whose evidence an attacked item is driven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence, Need

BATCH = 32
SUSPICIOUS, OTHER_CLASS, OWN_CLASS = 1e3, 1e6, 1e9  # added to distances, each far above the one before


class Opened(Protocol):
    """A guard whose evidence can be looked at before it judges."""

    def evidence(self, images: Tensor, /) -> Evidence:
        """Of unit-space images [item, ...]."""
        ...

    def judge(self, evidence: Evidence, /) -> tuple[Tensor, Tensor]:
        """Evidence -> logits [item, class] and excess [item, rate]."""
        ...


@dataclass(frozen=True)
class Guide:
    """What each attacked item's evidence shall become, and by how much each kind of evidence varies."""

    known: Opened  # whose evidence it is
    reference: Mapping[Need, Tensor]  # [item, feature]
    variance: Mapping[Need, Tensor]  # of a guide from the guides' mean

    def distance(self, evidence: Evidence) -> Tensor:
        """Mean squared distance [item] over the kinds of evidence, each in its own variance."""
        parts = [(evidence[n] - r).square().sum(dim=1) / self.variance[n] for n, r in self.reference.items()]
        return torch.stack(parts).mean(dim=0)

    def take(self, index: Tensor) -> Guide:
        return replace(self, reference={need: values[index] for need, values in self.reference.items()})


@dataclass(frozen=True)
class Guides:
    """Items that nobody attacks and the model has right, with the evidence of them that can be matched."""

    known: Opened  # whose evidence it is
    evidence: Mapping[Need, Tensor]  # [guide, feature]
    labels: Tensor  # [guide]
    passing: Tensor  # [guide] bool: the guard lets it through

    @staticmethod
    def of(known: Opened, images: Tensor, labels: Tensor) -> Guides:
        """Raises ValueError where there are fewer than two: nothing tells how far evidence varies."""
        if len(labels) < 2:
            raise ValueError(f"feature matching needs at least two clean items as guides; got {len(labels)}")
        parts: list[dict[Need, Tensor]] = []
        passing: list[Tensor] = []
        with torch.no_grad():
            for batch in images.split(BATCH):
                found = known.evidence(batch)
                parts.append({need: value for need, value in found.items() if need.comparable})
                passing.append(known.judge(found)[1][:, 0] < 0)
        evidence = {need: torch.cat([part[need] for part in parts]) for need in parts[0]}
        return Guides(known, evidence, labels, torch.cat(passing))

    def choose(self, evidence: Evidence, labels: Tensor) -> Guide:
        """For each item the nearest guide of the wrong class that it leans to, one that passes the guard if any does.

        Where no guide is of that class, the nearest of any class but the item's own.
        """
        own = torch.nn.functional.one_hot(labels, evidence[Logits()].shape[1]).bool()
        leaning = evidence[Logits()].masked_fill(own, -torch.inf).argmax(dim=1)
        variance = self.variance()
        distance = torch.stack(
            [torch.cdist(evidence[n], g).square() / variance[n] for n, g in self.evidence.items()]
        ).mean(dim=0)
        cost = distance.double() + SUSPICIOUS * ~self.passing
        cost = cost + OTHER_CLASS * (self.labels != leaning[:, None]) + OWN_CLASS * (self.labels == labels[:, None])
        chosen = cost.argmin(dim=1)
        return Guide(self.known, {need: values[chosen] for need, values in self.evidence.items()}, variance)

    def variance(self) -> Mapping[Need, Tensor]:
        return {n: (g - g.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-12) for n, g in self.evidence.items()}
