"""What the attack is proven on: weak detectors, and second networks that must break where none can hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.offline.adversary.excess import without_gradient
from guard.offline.adversary.runs import Adversary, Aim
from guard.offline.data.dataset import Dataset
from guard.offline.detectors.second_opinion import SecondOpinion, SecondOpinionHead
from guard.offline.evaluation.proofs import Proof, large_budget, network_excess, proofs_of
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.findings.evaluation import ProofRow
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.work.store import ResultStore
from tests.offline import tiny

CLEAN = torch.from_numpy(tiny.data(150, seed=71)[0])


class Hiding(nn.Module):
    """Says the very same as the network within it, but for steps too fine to be seen, and has no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(self.inner(images.detach()) * 1e3) / 1e3 + 0 * images.sum()


def asking(subject: OpenedGuard, network: SecondNetwork) -> OpenedGuard:
    """The tiny guard as if it asked this network, too."""
    detector = SecondOpinion((network,))
    head = SecondOpinionHead(detector, torch.tensor([[0.0, 1.0]]))
    programs = {**subject.programs, "screen": (*subject.programs["screen"], detector)}
    return replace(subject, programs=programs, heads={**subject.heads, detector.name: head})


def second_proof(subject: OpenedGuard, network: SecondNetwork) -> Proof:
    (found,) = (one for one in proofs_of(asking(subject, network), CLEAN, (0.0625, 0.125)) if one.network)
    return found


def attacked(subject: OpenedGuard, proof: Proof, folder: ResultStore) -> ProofRow:
    images, labels = tiny.data(24, seed=72)
    right = read(subject.cascade, images).prediction == labels
    items = Dataset(images[right], labels[right], np.asarray([f"{number:064d}" for number in np.flatnonzero(right)]))
    adversary = Adversary(items, 20, 0, tiny.GRID, "any", folder)
    found = adversary.attack(Aim(proof.name, proof.known), images[right], proof.budget, lambda *_: None)
    return proof.row(found.best.success)


def test_weak_detectors_come_first_and_each_network_has_a_larger_budget(tiny_subject: OpenedGuard) -> None:
    network = tiny.second_network("images")
    found = proofs_of(asking(tiny_subject, network), CLEAN, (0.0625, 0.125))
    assert [(one.name, one.budget, one.network) for one in found] == [
        ("kernel_density", 0.125, False),
        ("feature_squeezing", 0.125, False),
        ("second_network_1", 0.5, True),
    ]
    assert found[-1].label == "second network small at 8/16"
    assert len(proofs_of(tiny_subject, CLEAN, (0.125,))) == 2, "a guard without one has none to break"


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [((2 / 255, 8 / 255), 32 / 255), ((2 / 255,), 0.125), ((0.125, 0.25), 0.5), ((0.1, 0.9), 0.9)],
)
def test_the_large_budget(budgets: tuple[float, ...], expected: float) -> None:
    assert large_budget(budgets) == pytest.approx(expected)


def test_a_networks_threshold_is_that_of_its_own_margins(tiny_subject: OpenedGuard) -> None:
    known = network_excess(tiny_subject, tiny.second_network("images"), CLEAN)
    _, excess = known(CLEAN)
    assert float((excess[:, 0] >= 0).float().mean()) == pytest.approx(0.05, abs=0.02)


def test_an_honest_network_breaks_and_one_that_hides_its_gradient_holds_and_is_named(
    tiny_subject: OpenedGuard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Within 2/16 already; beyond it, what misleads this small model misleads the hidden network as well."""
    honest = tiny.second_network("images")
    hidden = replace(honest, digest="hidden", network=Hiding(honest.network))
    proofs = [replace(second_proof(tiny_subject, one), budget=0.125) for one in (honest, hidden)]
    rows = [attacked(tiny_subject, proof, ResultStore(tmp_path_factory.mktemp("runs"))) for proof in proofs]
    assert rows[0].success.value >= 0.9
    assert rows[1].success.value < 0.9
    named = [without_gradient(proof.known.program, CLEAN[:16]) for proof in proofs]
    assert named == [(), ("second_opinion",)]
