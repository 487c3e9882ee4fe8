"""Names of attacks in reports: budgets and ranges of them, and no two alike."""

from __future__ import annotations

from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.patch import Patch
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.findings.attack_names import labels_of


def test_budgets_and_ranges_read_well():
    attacks = [
        Pgd(budget=8 / 255),
        Pgd(budget=[1 / 255, 16 / 255]),
        Pgd(budget=[0.5 / 255, 15 / 255]),
        Pgd(budget=[0.25, 0.75], norm="l2"),
        Patch(budget=[0.02, 0.1]),
        DeepFool(overshoot=[0.02, 0.2]),
        Fgsm(budget=[0.3, 0.3004], norm="l2"),
    ]
    assert list(labels_of(attacks, 255)) == [
        "pgd L∞ 8/255",
        "pgd L∞ 1 to 16/255",
        "pgd L∞ 0.00196 to 15/255",
        "pgd L2 0.25 to 0.75",
        "patch L0 2.0 to 10.0%",
        "deepfool L2",
        "fgsm L2 0.3",
    ]
    assert list(labels_of(attacks[1:2], None)) == ["pgd L∞ 0.00392 to 0.0627"]


def test_no_two_names_are_alike():
    attacks = [Pgd(budget=[0.1, 0.2], steps=steps) for steps in (10, 20, 30)]
    names = ["pgd L∞ 0.1 to 0.2", "pgd L∞ 0.1 to 0.2 #2", "pgd L∞ 0.1 to 0.2 #3"]
    assert list(labels_of(attacks, None)) == names
