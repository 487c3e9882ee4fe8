"""The proofs of the adaptive attack's strength: what it must break first, each alone, before its rows count.

Rule 1: detectors known to be weak are attacked within the row's largest budget.
Rule 2: each second network is attacked alone within a budget at which none can hold: one that holds all the same hides
its gradient, and what the whole guard withstands is then no robustness.

Source: Carlini et al. 2019, arXiv:1902.06705, section 4.4 (an attack without bounds must succeed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.offline.adversary.excess import DetectorExcess
from guard.offline.detectors.second_opinion import SecondOpinion, SecondOpinionHead
from guard.offline.evidence.kinds.second import SecondNetwork, networks_of
from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import ProofRow
from guard.offline.findings.intervals import Rate
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.program import Program

PROOF_RATE = 0.05  # the rate at which an attack must break what it is proven on
PROVING_DETECTORS = ("kernel_density", "feature_squeezing", "lid")
LARGE_BUDGET_FACTOR = 4.0  # over the largest budget of the rows
MIN_LARGE_STEP, MAX_LARGE_STEP = 0.125, 0.5  # in unit space: 32/255, and what turns any image into plain grey
SCORED_BATCH_ITEMS = 64
MAX_SCORED_ITEMS = 1000  # clean items from which a network's threshold is taken


@dataclass(frozen=True)
class Proof:
    """What the attack is proven on: one detector or second network alone, and the budget within which it must break."""

    name: str  # of the run's files
    label: str
    known: DetectorExcess
    budget: float
    network: bool  # a second network, which must break where none can hold

    def row(self, success: Tensor) -> ProofRow:
        """Return the row of these outcomes [item] bool."""
        return ProofRow(self.label, self.budget, Rate.of(success.numpy()), self.network)


def proofs_of(subject: OpenedGuard, clean: Tensor, budgets: Sequence[float]) -> tuple[Proof, ...]:
    """Return what an attack within these budgets must break first; `clean` images [item, ...] set networks' thresholds.

    A network stands for itself: its threshold is that of its own margins, not of the most surprised of several.
    """
    calibration, largest = subject.cascade.calibration, max(budgets)
    found = []
    for name in PROVING_DETECTORS:
        if name in calibration.detectors:
            scores = torch.from_numpy(calibration.clean_scores[:, calibration.detectors.index(name)])
            found.append(
                Proof(name, name, DetectorExcess(subject.alone(name), name, scores, PROOF_RATE), largest, False)
            )
    large = large_budget(budgets)
    spoken = spoken_budget(large, subject.cascade.spec.grid)
    for number, network in enumerate(second_networks(subject), start=1):
        label = f"second network {network.name} at {spoken}"
        known = network_excess(subject, network, clean[:MAX_SCORED_ITEMS])
        found.append(Proof(f"second_network_{number}", label, known, large, True))
    return tuple(found)


def second_networks(subject: OpenedGuard) -> tuple[SecondNetwork, ...]:
    """Return the second networks that a guard asks, each once."""
    return networks_of(need for detector in subject.detectors for need in detector.needs)


def large_budget(budgets: Sequence[float]) -> float:
    """Return a budget at which no network of the rows' budgets can hold: 32/255 for 2 and 8/255, 0.5 for 0.25."""
    largest = max(budgets)
    return max(largest, min(max(LARGE_BUDGET_FACTOR * largest, MIN_LARGE_STEP), MAX_LARGE_STEP))


def network_excess(subject: OpenedGuard, network: SecondNetwork, clean: Tensor) -> DetectorExcess:
    """Return the excess of one second network's opinion over what it says of these clean images [item, ...]."""
    detector = SecondOpinion((network,))
    head = SecondOpinionHead(detector, torch.tensor([[0.0, 1.0]]))  # the plain margin: `DetectorExcess` scales it
    program = Program(subject.classifier, [head], smooth=True)
    with torch.no_grad():
        scores = [program.scores(program.evidence(some))[:, 0] for some in clean.split(SCORED_BATCH_ITEMS)]
    return DetectorExcess(program, detector.name, torch.cat(scores).double(), PROOF_RATE)
