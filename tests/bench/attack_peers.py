"""The contests of `tests.bench.attacks`: an attack of ours, and other people's, told to do the same."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.methods.bim import Bim
from guard.offline.attacks.methods.cw import Cw
from guard.offline.attacks.methods.cw_linf import CwLinf
from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.methods.rfgsm import Rfgsm
from guard.offline.data.norms import Measure
from tests.side import reach

Entrant = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # images, labels, targets -> attacked
LINF, L2, L1 = 2 / 255, 0.25, 4.0  # budgets at which the model still holds some items
AIMED = 6 / 255  # likewise, for the least likely class
STEPS = 10
SLOW = "slow"  # begins the names of those that run only where they are asked for


@dataclass(frozen=True)
class Contest:
    """Ours against theirs; without a budget it is the size that counts, beside success."""

    name: str
    ours: Attack
    peers: Mapping[str, Entrant] = field(repr=False)
    told: str  # what theirs are told, where it is not the same word for word
    aimed: bool = False  # at the least likely class

    @property
    def norm(self) -> Measure:
        return self.ours.norm

    @property
    def settings(self) -> str:
        """What a result is kept under."""
        return f"{self.ours!r} | {', '.join(self.peers)} | {self.told}"


class Watched(nn.Module):
    """A graph as the libraries want it: a module with a parameter, for its device."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.graph(images)
        return logits


def contests(graph: nn.Module, shape: tuple[int, ...], classes: int) -> tuple[Contest, ...]:
    """All of them; the libraries come from the shelf `attacks`."""
    reach("attacks")
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # without it foolbox fails where there is no git
    for absent in ("torchvision", "visdom"):  # adv-lib imports them for what is not used here
        sys.modules.setdefault(absent, types.ModuleType(absent))
        sys.modules[absent].__dict__.setdefault("models", None)
    warnings.simplefilter("ignore")  # about frameworks that are not installed, and old idioms
    network = Watched(graph).eval()
    fool, torchy = Foolbox(network), Torchattacks(network)
    art, adv = Art(network, shape, classes), AdvLib(network)
    return (*one_step(fool, torchy, art), *many_steps(fool, torchy, art, adv), *smallest(fool, torchy, art, adv))


class Foolbox:
    def __init__(self, network: nn.Module) -> None:
        import foolbox

        self.attacks, self.aim = foolbox.attacks, foolbox.criteria.TargetedMisclassification
        self.model = foolbox.PyTorchModel(network, bounds=(0, 1))

    def __call__(self, name: str, budget: float | None, **settings: Any) -> Entrant:
        attack = getattr(self.attacks, name)(**settings)

        def run(images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            found: Tensor = attack(
                self.model, images, labels if targets is None else self.aim(targets), epsilons=budget
            )[1]
            black = (found == 0).flatten(1).all(dim=1)  # what its C&W returns where it failed; no attack's doing
            return torch.where(black[:, None, None, None], images, found)

        return run


class Torchattacks:
    def __init__(self, network: nn.Module) -> None:
        import torchattacks

        self.attacks, self.network = torchattacks, network

    def __call__(self, name: str, **settings: Any) -> Entrant:
        plain, aimed = (getattr(self.attacks, name)(self.network, **settings) for _ in range(2))
        if "targeted" in aimed.supported_mode:
            aimed.set_mode_targeted_by_label(quiet=True)

        def run(images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            found: Tensor = plain(images, labels) if targets is None else aimed(images, targets)
            return found

        return run


class Art:
    def __init__(self, network: nn.Module, shape: tuple[int, ...], classes: int) -> None:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        self.attacks, self.classes = evasion, classes
        self.model = PyTorchClassifier(
            network,
            loss=nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )

    def __call__(self, name: str, *, aimed: bool = False, **settings: Any) -> Entrant:
        targeted = {"targeted": True} if aimed else {}
        attack = getattr(self.attacks, name)(self.model, batch_size=1000, **targeted, **settings)

        def run(images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            wanted = np.eye(self.classes, dtype=np.float32)[labels if targets is None else targets]
            return torch.from_numpy(attack.generate(images.numpy(), wanted))

        return run


class AdvLib:
    def __init__(self, network: nn.Module) -> None:
        from adv_lib import attacks

        self.attacks, self.network = attacks, network

    def __call__(self, name: str, **settings: Any) -> Entrant:
        attack = getattr(self.attacks, name)

        def run(images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
            found: Tensor = attack(self.network, images, labels, **settings)
            return found

        return run


def one_step(fool: Foolbox, torchy: Torchattacks, art: Art) -> tuple[Contest, ...]:
    return (
        Contest(
            "fgsm linf",
            Fgsm(budget=LINF),
            {
                "foolbox": fool("LinfFastGradientAttack", LINF),
                "torchattacks": torchy("FGSM", eps=LINF),
                "ART": art("FastGradientMethod", eps=LINF),
            },
            "the same",
        ),
        Contest(
            "fgsm l2",
            Fgsm(budget=L2, norm="l2"),
            {"foolbox": fool("L2FastGradientAttack", L2), "ART": art("FastGradientMethod", eps=L2, norm=2)},
            "the same",
        ),
        Contest(
            "rfgsm",
            Rfgsm(budget=LINF),
            {"torchattacks": torchy("RFGSM", eps=LINF, alpha=LINF / 2, steps=1)},
            "one step of half the budget",
        ),
    )


def many_steps(fool: Foolbox, torchy: Torchattacks, art: Art, adv: AdvLib) -> tuple[Contest, ...]:
    step, step_2, step_1, step_aimed = (2.5 * budget / STEPS for budget in (LINF, L2, L1, AIMED))
    plain: dict[str, Any] = {"abs_stepsize": step, "steps": STEPS}
    quiet: dict[str, Any] = {"max_iter": STEPS, "verbose": False}
    return (
        Contest(
            "bim linf",
            Bim(budget=LINF, steps=STEPS, step_size=step),
            {
                "foolbox": fool("LinfBasicIterativeAttack", LINF, random_start=False, **plain),
                "torchattacks": torchy("BIM", eps=LINF, alpha=step, steps=STEPS),
                "ART": art("ProjectedGradientDescent", eps=LINF, eps_step=step, **quiet),
            },
            "the same steps from the input; ART's PGD without a random start",
        ),
        Contest(
            "bim least likely",
            Bim(budget=AIMED, steps=STEPS, step_size=step_aimed, target="least_likely"),
            {
                "foolbox": fool(
                    "LinfBasicIterativeAttack", AIMED, abs_stepsize=step_aimed, steps=STEPS, random_start=False
                ),
                "torchattacks": torchy("BIM", eps=AIMED, alpha=step_aimed, steps=STEPS),
                "ART": art("ProjectedGradientDescent", aimed=True, eps=AIMED, eps_step=step_aimed, **quiet),
            },
            "the targets, found outside their time",
            aimed=True,
        ),
        Contest(
            "pgd linf",
            Pgd(budget=LINF, steps=STEPS),
            {
                "foolbox": fool("LinfProjectedGradientDescentAttack", LINF, random_start=True, **plain),
                "torchattacks": torchy("PGD", eps=LINF, alpha=step, steps=STEPS),
                "ART": art("ProjectedGradientDescent", eps=LINF, eps_step=step, num_random_init=1, **quiet),
                "adv-lib": adv("pgd_linf", ε=LINF, steps=STEPS, absolute_step_size=step),
            },
            "the same; adv-lib stops an item once it fools",
        ),
        Contest(
            "pgd l2",
            Pgd(budget=L2, norm="l2", steps=STEPS),
            {
                "foolbox": fool(
                    "L2ProjectedGradientDescentAttack", L2, abs_stepsize=step_2, steps=STEPS, random_start=True
                ),
                "torchattacks": torchy("PGDL2", eps=L2, alpha=step_2, steps=STEPS),
                "ART": art("ProjectedGradientDescent", norm=2, eps=L2, eps_step=step_2, num_random_init=1, **quiet),
            },
            "the same",
        ),
        Contest(
            "pgd l1",
            Pgd(budget=L1, norm="l1", steps=STEPS, random_start=False),
            {
                "foolbox": fool("SparseL1DescentAttack", L1, abs_stepsize=step_1, steps=STEPS),
                "ART": art("ProjectedGradientDescent", norm=1, eps=L1, eps_step=step_1, **quiet),
            },
            "the same steps from the input; foolbox's SparseL1Descent, of the top 1 %",
        ),
    )


def smallest(fool: Foolbox, torchy: Torchattacks, art: Art, adv: AdvLib) -> tuple[Contest, ...]:
    searches, steps, rate = 3, 15, 0.03
    return (
        Contest(
            "deepfool l2",
            DeepFool(),
            {
                "foolbox": fool("L2DeepFoolAttack", None, steps=50, candidates=10, overshoot=0.02),
                "adv-lib": adv("df", steps=50, overshoot=0.02, norm=2),
                f"{SLOW} torchattacks": torchy("DeepFool", steps=50, overshoot=0.02),
                f"{SLOW} ART": art("DeepFool", max_iter=50, epsilon=0.02, verbose=False),
            },
            "the same",
        ),
        Contest(
            "deepfool linf",
            DeepFool(norm="linf"),
            {
                "foolbox": fool("LinfDeepFoolAttack", None, steps=50, candidates=10, overshoot=0.02),
                "adv-lib": adv("df", steps=50, overshoot=0.02, norm=float("inf")),
            },
            "the same",
        ),
        Contest(
            "cw l2",
            Cw(steps=steps, searches=searches, learning_rate=rate),
            {
                "foolbox": fool(
                    "L2CarliniWagnerAttack",
                    None,
                    binary_search_steps=searches,
                    steps=steps,
                    stepsize=rate,
                    initial_const=1.0,
                ),
                "torchattacks": torchy("CW", c=1, steps=searches * steps, lr=rate),
                "adv-lib": adv(
                    "carlini_wagner_l2",
                    binary_search_steps=searches,
                    max_iterations=steps,
                    learning_rate=rate,
                    initial_const=1.0,
                ),
                f"{SLOW} ART": art(
                    "CarliniL2Method",
                    binary_search_steps=searches,
                    max_iter=steps,
                    learning_rate=rate,
                    initial_const=1.0,
                    verbose=False,
                ),
            },
            "the same, from c = 1; torchattacks does not search, and takes all steps at one c",
        ),
        Contest(
            "cw l2 slow",
            Cw(steps=steps, searches=searches, learning_rate=0.01),
            {
                "foolbox": fool(
                    "L2CarliniWagnerAttack",
                    None,
                    binary_search_steps=searches,
                    steps=steps,
                    stepsize=0.01,
                    initial_const=1.0,
                ),
                "torchattacks": torchy("CW", c=1, steps=searches * steps, lr=0.01),
                "adv-lib": adv(
                    "carlini_wagner_l2",
                    binary_search_steps=searches,
                    max_iterations=steps,
                    learning_rate=0.01,
                    initial_const=1.0,
                ),
            },
            "the same, at the libraries' own learning rate of 0.01",
        ),
        Contest(
            "cw linf",
            CwLinf(steps=STEPS),
            {
                "adv-lib": adv(
                    "carlini_wagner_linf",
                    max_iterations=STEPS,
                    learning_rate=0.01,
                    initial_const=0.1,
                ),
                f"{SLOW} ART": art("CarliniLInfMethod", max_iter=STEPS, initial_const=0.1, verbose=False),
            },
            f"{STEPS} steps a constant and a threshold from c = 0.1 on, and as many of both as it takes",
        ),
    )
