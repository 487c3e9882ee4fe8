"""The rows of the adaptive attack, which knows the guard: how much of it there is time for, its proof, its results.

Rule 1: the row is always there. Where time is short it has fewer steps, then fewer items, never below the fewest.
Rule 2: what is attacked is the torch side; what is counted are the bundle's own verdicts, and how far the two differ.
Rule 3: untargeted: any wrong class counts. That is easier than a chosen class, so what holds is the stronger claim.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from guard.cascade import Readings
from guard.offline.adversary.descent import METHODS, AdaptiveResult, descents_of
from guard.offline.adversary.directions import Method
from guard.offline.adversary.excess import DetectorExcess, Excess, served_excess, without_gradient
from guard.offline.adversary.guides import Guides
from guard.offline.adversary.runs import (
    MAX_GUIDE_ITEMS,
    START_POINTS,
    Adversary,
    Aim,
    MethodResults,
    StepReporter,
)
from guard.offline.adversary.surrogates import expectation, stand_ins_of
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.evaluation.answered_rows import AnsweredStage
from guard.offline.evaluation.attack_rows import detect
from guard.offline.evaluation.effort import Effort, Size
from guard.offline.evaluation.outcome_row import HALF_RATE, missed_at, outcome_row
from guard.offline.evaluation.proofs import MAX_SCORED_ITEMS, Proof, proofs_of
from guard.offline.evaluation.strength import StrengthCheck, cheapest, check_starts, least_through, wider_rows
from guard.offline.findings.attack_names import spoken_budget
from guard.offline.findings.evaluation import AdaptiveRow, OutcomeRow, ProofRow, StrengthRow
from guard.offline.findings.intervals import Promise, Rate, promises_of
from guard.offline.job.recipe import Recipe
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import by_programs, read, some_of
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.store import ResultStore, cache_key
from guard.offline.work.tasks import Executor
from guard.offline.work.text import duration

GUARD = "guard"  # the aim that is the whole guard
GREY = "grey"  # the aim that is the guard with other second networks
TRIAL_STEPS = 2  # by which speed is measured
GRADIENT_ITEMS = 16  # attacked items on which each head's gradient is looked at


def seconds_per_step(
    aim: Aim, items: Dataset, budget: float, device: str, executor: Executor
) -> Mapping[Method, float]:
    """Measure the seconds that one step from one point takes an item, by method; the first steps warm up.

    An upper bound for a run, whose items leave once nothing is left to gain.
    """
    seconds = dict.fromkeys(aim.methods, 0.0)
    for steps in (0, TRIAL_STEPS):
        trial = Adversary(items, steps, 0, None, "", ResultStore(Path()), device, executor)
        for method in aim.methods:
            began = time.perf_counter()
            trial.tried(aim, method, budget)
            seconds[method] = time.perf_counter() - began
    return {method: taken / (len(items) * TRIAL_STEPS) for method, taken in seconds.items()}


def target_rate(promises: Sequence[Promise], flag_rate: float) -> float:
    """Return the rate whose threshold is attacked: the largest that is promised."""
    return max((p.rate for p in promises if p.reason is None), default=flag_rate)


@dataclass(frozen=True)
class AdaptiveStage:
    """The stage of the adaptive attack on one guard: all its runs, before any of them has begun."""

    subject: OpenedGuard
    held_out: Dataset
    budgets: tuple[float, ...]
    promises: tuple[Promise, ...]
    wanted: Size
    seed: int
    work: WorkDirectory
    methods: tuple[Method, ...] = METHODS
    device: str = "cpu"
    answered: AnsweredStage | None = None  # of a closed model whose answers are held
    checked: bool = False  # whether stronger attacks are tried on some of the items
    grey: OpenedGuard | None = None  # the guard with other second networks, as one takes it to be who has not its own
    executor: Executor = OWN_THREADS

    @property
    def target(self) -> float:
        return target_rate(self.promises, self.subject.rates.flag)

    @cached_property
    def proofs(self) -> tuple[Proof, ...]:
        """What the attack must break first, each alone: detectors known to be weak, and second networks."""
        return proofs_of(
            self.subject, torch.from_numpy(np.array(self.held_out.images[:MAX_SCORED_ITEMS])), self.budgets
        )

    def right(self, clean: Readings, size: Size) -> NDArray[np.int64]:
        """Return the first items that the model has right, by index."""
        return np.flatnonzero(clean.prediction == self.held_out.labels)[: size.items]

    def guides(self, clean: Readings) -> NDArray[np.int64]:
        """Return items that the model has right and that are not attacked, by index.

        Where fewer than two are left, the last of the right ones serve; no item guides its own class.
        """
        right = np.flatnonzero(clean.prediction == self.held_out.labels)
        spare = right[self.wanted.items :][:MAX_GUIDE_ITEMS]
        return spare if len(spare) > 1 else right[-MAX_GUIDE_ITEMS:]

    def whole(self, clean: Readings) -> Aim:
        """Return the whole guard as it is attacked: at the target rate and at HALF_RATE."""
        known = Excess(self.subject.joint(), self.subject.cascade.calibration, self.target, HALF_RATE)
        return self.aim(GUARD, known, clean)

    def aim(self, name: str, known: Excess | DetectorExcess, clean: Readings) -> Aim:
        """Return what is attacked on the device, with the guides of the methods that need some."""
        known = known.to(self.device)
        if "feature_matching" not in self.methods:
            return Aim(name, known, self.methods)
        index, here = self.guides(clean), partial(torch.as_tensor, device=self.device)
        guides = Guides.of(known, here(self.held_out.images[index]), here(self.held_out.labels[index]))
        return Aim(name, known, self.methods, guides)

    def descents(self) -> float:
        """Return the number of descents of all runs together, the checks' as a share of the items."""
        each = START_POINTS * sum(map(descents_of, self.methods))
        return each * (self.guards * len(self.budgets) + len(self.proofs)) + self.check_descents

    @property
    def guards(self) -> int:
        """The number of whole guards that are attacked within each budget: the one that is known, and the grey one."""
        return 1 if self.grey is None else 2

    @property
    def check_descents(self) -> float:
        """The descents of the checks for each item of a row, at most."""
        return self.check_starts * min(map(descents_of, self.methods))

    @property
    def check_starts(self) -> float:
        """The points that the checks descend from for each item of a row, at most."""
        return check_starts(len(self.budgets)) if self.checked else 0.0

    def per_item_step(self, clean: Readings) -> float:
        """Measure the seconds that one step of every descent takes an item."""
        items = self.held_out.take(self.right(clean, self.wanted))
        times = seconds_per_step(self.whole(clean), items, max(self.budgets), self.device, self.executor)
        check_s = self.check_starts * max(times[method] for method in cheapest(self.methods))
        total = START_POINTS * self.guards * len(self.budgets) * sum(times.values()) + check_s
        for proof in self.proofs:
            aim = self.aim(proof.name, proof.known, clean)
            times = seconds_per_step(aim, items, proof.budget, self.device, self.executor)
            total += START_POINTS * sum(times.values())
        return total

    def sized(self, clean: Readings, seconds: Callable[[], float] | None, say: Callable[[str], None]) -> Size:
        """Return the size that fits into the seconds left; one chosen before for the same question is kept to."""
        if seconds is None:
            return self.wanted

        def choose() -> dict[str, int]:
            per = self.per_item_step(clean)
            size = self.wanted.shrunk(seconds(), per)
            say(
                f"adaptive attack: {self.descents() / per:.0f} guarded steps/s, so {size.items} items x {size.steps} "
                f"steps x {self.descents():g} descents, at most {duration(per * size.items * (size.steps + 1))}"
            )
            return asdict(size)

        return Size(**self.work.choices.choice("adaptive", self.question(), choose))

    def question(self) -> str:
        hashes = hashlib.sha256("".join(self.held_out.hashes.tolist()).encode()).hexdigest()
        settings = (self.subject.identity, hashes, self.budgets, self.target, self.seed)
        grey = None if self.grey is None else self.grey.identity
        return cache_key((settings, self.wanted, self.methods, self.checked, grey), (__name__,))

    def rows(
        self, clean: Readings, crafted: Sequence[CraftedSet], size: Size, shown: StepReporter
    ) -> tuple[AdaptiveRow, ...]:
        """Make one row a budget, on the first items that the model has right; the proofs come first."""
        expectation(self.subject.graphs)
        index, grid = self.right(clean, size), self.subject.cascade.spec.grid
        adversary = self.adversary(clean, index, size)
        proven = self.proven(adversary, clean, index, crafted, shown)
        whole = self.whole(clean)
        starts = {budget: static_start(self.held_out, index, crafted, budget) for budget in self.budgets}
        outcomes = {}
        for budget, start in starts.items():
            outcomes[budget] = adversary.attack(whole, start, budget, partial(told, shown, spoken_budget(budget, grid)))
        strength = self.strength(adversary, clean, starts, outcomes, shown) if self.checked else {}
        labels = adversary.items.labels
        return tuple(
            replace(
                self.row(outcome, labels, clean, budget, size, proven, strength.get(budget, ())),
                static=outcome_row(self.subject, self.promises, starts[budget], labels),
                grey=self.grey_row(adversary, clean, starts[budget], budget, shown),
            )
            for budget, outcome in outcomes.items()
        )

    def grey_row(
        self,
        adversary: Adversary,
        clean: Readings,
        start: NDArray[np.float32],
        budget: float,
        shown: StepReporter,
    ) -> OutcomeRow | None:
        """Attack the guard with other second networks, and return what of it the guard itself lets through."""
        if self.grey is None:
            return None
        known = Excess(self.grey.joint(), self.subject.cascade.calibration, self.target, HALF_RATE)
        other = replace(adversary, identity=f"{adversary.identity} {self.grey.identity}")
        heard = partial(told, shown, spoken_budget(budget, self.subject.cascade.spec.grid))
        found = other.attack(self.aim(GREY, known, clean), start, budget, heard).best
        return outcome_row(self.subject, self.promises, found.images.numpy(), adversary.items.labels)

    def strength(
        self,
        adversary: Adversary,
        clean: Readings,
        starts: Mapping[float, NDArray[np.float32]],
        outcomes: Mapping[float, MethodResults],
        shown: StepReporter,
    ) -> Mapping[float, tuple[StrengthRow, ...]]:
        """Try stronger attacks where the least gets through, and compare the budgets' rows; by budget."""
        grid, budget = self.subject.cascade.spec.grid, least_through(outcomes)
        known = Excess(self.subject.joint(), self.subject.cascade.calibration, self.target)
        aim = self.aim(f"{GUARD}_at_{self.target:g}", known, clean)
        tried = StrengthCheck(
            adversary, aim, starts[budget], budget, outcomes[budget], partial(told, shown, spoken_budget(budget, grid))
        )
        rows = dict(wider_rows(outcomes, grid))
        alone = (tried.wider(grid),) if len(outcomes) == 1 else ()
        rows[budget] = (*rows.get(budget, ()), tried.more_steps(), tried.more_restarts(), *alone)
        return rows

    def proven(
        self,
        adversary: Adversary,
        clean: Readings,
        index: NDArray[np.int64],
        crafted: Sequence[CraftedSet],
        shown: StepReporter,
    ) -> tuple[ProofRow, ...]:
        """Attack each detector known to be weak, and each second network, alone."""
        rows = []
        for proof in self.proofs:
            start = static_start(self.held_out, index, crafted, proof.budget)
            found = adversary.attack(self.aim(proof.name, proof.known, clean), start, proof.budget, shown)
            rows.append(proof.row(found.best.success))
        return tuple(rows)

    def adversary(self, clean: Readings, index: NDArray[np.int64], size: Size) -> Adversary:
        """Make the adversary; its identity, and so its stored runs, follow from guides and thresholds, too."""
        parts: list[object] = [self.subject.identity]
        if "feature_matching" in self.methods:
            parts.append(self.held_out.hashes[self.guides(clean)].tolist())
        if any(proof.network for proof in self.proofs):
            parts.append(self.held_out.hashes[:MAX_SCORED_ITEMS].tolist())
        identity = self.subject.identity if len(parts) == 1 else hashlib.sha256(repr(parts).encode()).hexdigest()
        return Adversary(
            items=self.held_out.take(index),
            steps=size.steps,
            seed=self.seed,
            grid=grid_for(self.subject.cascade.spec),
            identity=identity,
            work=self.work.adaptive,
            device=self.device,
            executor=self.executor,
        )

    def row(
        self,
        outcome: MethodResults,
        labels: NDArray[np.int64],
        clean: Readings,
        budget: float,
        size: Size,
        proof: tuple[ProofRow, ...],
        strength: tuple[StrengthRow, ...],
    ) -> AdaptiveRow:
        cascade, rates, found = self.subject.cascade, self.subject.rates, outcome.best
        answering = self.subject.classifier.answering
        readings = read(cascade, found.images.numpy(), answering=answering)
        fooled, p_value = readings.prediction != labels, readings.p_value
        missed = missed_at(readings, labels)
        passed = {p.rate: Rate.of(missed > p.rate) if p.reason is None else None for p in self.promises}
        results = {
            method: (read(cascade, result.images.numpy(), answering=answering), result.images.numpy())
            for method, result in outcome.by_method.items()
        }
        by_method = {method: missed_at(found_by, labels) for method, (found_by, _) in results.items()}
        label, tried = f"adaptive L∞ {spoken_budget(budget, cascade.spec.grid)}", list(results.values())
        return AdaptiveRow(
            budget=budget,
            label=label,
            steps=size.steps,
            methods=self.methods,
            target=self.target,
            fooled=Rate.of(fooled),
            detection=detect(
                self.subject.cascade.calibration, some_of(readings, fooled), p_value, fooled, clean, self.promises
            ),
            passed=passed,
            passed_reject=Rate.of(missed > rates.reject),
            passed_flag=Rate.of(missed > rates.flag),
            disagreement=float((self.passed_programs(readings, labels) != found.success.numpy()).mean()),
            proof=proof,
            by_method={method: Rate.of(of_method > self.target) for method, of_method in by_method.items()},
            sr50=Rate.of(missed > HALF_RATE),
            surrogates=(*stand_ins_of(self.subject.detectors), expectation(self.subject.graphs)),
            risk_gap=self.risk_gap(found, readings),
            without_gradient=without_gradient(self.subject.joint(), found.images[:GRADIENT_ITEMS]),
            answered=None if self.answered is None else self.answered.worst_row(label, tried, labels),
            strength=strength,
        )

    def passed_programs(self, readings: Readings, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which items pass the served programs and mislead them [item], a student's of a closed model."""
        return np.asarray((by_programs(readings) != labels) & (readings.p_value > self.target), dtype=np.bool_)

    def risk_gap(self, found: AdaptiveResult, readings: Readings) -> float:
        """Return the largest difference in risk between the attacked torch side and the served programs."""
        served = served_excess(self.subject.cascade.calibration, readings.scores, self.target)
        return float(np.abs(served - found.excess[:, 0].numpy()).max(initial=0.0))


def told(shown: StepReporter, budget: str, what: object, done: int, total: int) -> None:
    shown(f"{what} {budget}", done, total)


def static_start(
    held_out: Dataset, index: NDArray[np.int64], crafted: Sequence[CraftedSet], budget: float
) -> NDArray[np.float32]:
    """Return the item from which the adaptive attack may start, for each item of `index`.

    It is the static L-infinity attack's result within the budget, or the clean item where there is none.
    """
    start = held_out.images[index].copy()
    for found in crafted:
        if found.norm == "linf" and found.budget is not None:
            within = np.flatnonzero(found.budgets <= budget + 1e-6)
            places: Mapping[str, int] = {str(found.hashes[place]): int(place) for place in within}
            for row, item in enumerate(index):
                if (place := places.get(str(held_out.hashes[item]))) is not None:
                    start[row] = found.attacked[place]
    return start


def adaptive_stage(
    subject: OpenedGuard,
    held_out: Dataset,
    recipe: Recipe,
    effort: Effort,
    answered: AnsweredStage | None = None,
    grey: OpenedGuard | None = None,
) -> AdaptiveStage:
    return AdaptiveStage(
        subject,
        held_out,
        recipe.adaptive_budgets,
        promises_of(subject.cascade.calibration.items, len(held_out.images)),
        Size(effort.adaptive_items, effort.adaptive_steps),
        effort.seed,
        effort.work,
        effort.methods,
        answered=answered,
        checked=effort.checked,
        grey=grey,
        executor=effort.executor,
    )
