"""Runs a suite: each attack is tried on as many items as its share of the suite's time allows.

Rule 1: an attack that cannot be run is a row that says why, and counts as failed; no row is ever missing.
Rule 2: an attack that the recipe has too is measured once.
Rule 3: sizes are chosen once, and kept: what is measured does not depend on how fast the machine is today.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.errors import GuardError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import Model
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.evaluation.attack_rows import Examined, Examiner
from guard.offline.findings.attack_names import labels_of
from guard.offline.findings.evaluation import AttackRow, SuiteRows, UnrunRow
from guard.offline.job.suite import Suite
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.progress import Stage
from guard.offline.work.store import cache_key
from guard.offline.work.tables import STAGE_WIDTH_COLUMNS, counts, new_table, plain_lines
from guard.offline.work.tasks import Executor
from guard.offline.work.text import short

PROBED_ITEMS = 16  # items by which an attack's speed is measured; a shard of one that asks for thousands of answers
TRIED_ITEMS_FACTOR = 1.3  # over the items that a success rate asks for, since few items measured it
FORETOLD_TIME_FACTOR = 1.2  # over the seconds that a probe foretells: the last shards leave cores without work
# What an attack may raise that cannot handle this model, these inputs or what is installed. foolbox, pyautoattack and
# torch raise RuntimeError and ValueError for that; the row quotes it, and hours of other rows are not lost to it.
UNRUNNABLE = (GuardError, ImportError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Further:
    """A suite to be run, and how long it may take."""

    suite: Suite
    seconds: float
    work: WorkDirectory


@dataclass(frozen=True)
class Planned:
    """The result of probing one attack: its seconds an item, and the items it needs."""

    label: str
    seconds: float  # an item, all workers at it
    wanted: int  # items, for as many verified ones as its family takes

    @property
    def cost(self) -> float:
        return self.seconds * self.wanted


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial of the attacks that are not the recipe's, on the items that the model has right."""

    further: Further
    examiner: Examiner
    model: Model
    subject: OpenedGuard
    held_out: Dataset
    seed: int
    progress: Stage
    executor: Executor = OWN_THREADS

    @property
    def right(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.examiner.guard.clean.prediction == self.held_out.labels)

    def run(
        self, known: Mapping[str, Attack], examined: Mapping[str, Examined]
    ) -> tuple[SuiteRows, dict[str, Examined]]:
        """Run the suite, and also return what the rows of attacks that only the suite has were made from, by label.

        `known` are the recipe's attacks by label, and `examined` what was made of them.
        """
        suite, grid = self.further.suite, self.subject.cascade.spec.grid
        done = {repr(attack): examined[label] for label, attack in known.items()}
        labels = {
            f"{label} ({suite.name})" if label in known and repr(attack) not in done else label: attack
            for label, attack in labels_of(suite.attacks, grid).items()
        }
        fresh = {label: attack for label, attack in labels.items() if repr(attack) not in done}
        tried, own = self.sizes(fresh), {}
        rows: list[AttackRow | UnrunRow] = []
        for label, attack in labels.items():
            found = done[repr(attack)] if label not in fresh else self.examine(label, attack, tried[label])
            rows.append(found if isinstance(found, UnrunRow) else found.row)
            if label in fresh and isinstance(found, Examined):
                own[label] = found
        return SuiteRows(suite.name, suite.description, self.further.seconds / 60, tuple(rows)), own

    def refusal(self, attack: Attack) -> str | None:
        """Return why an attack does not apply to the inputs, or None where it does."""
        return self.subject.classifier.kind.refusal(attack)

    def examine(self, label: str, attack: Attack, tried: int) -> Examined | UnrunRow:
        if reason := self.refusal(attack):
            self.progress.say(f"{short(label, 34)}: skipped: {reason}")
            return UnrunRow(repr(attack), label, str(attack.family), reason, applies=False)
        try:
            crafted = self.crafted(attack, tried)
        except UNRUNNABLE as error:
            self.progress.say(f"{short(label, 34)}: cannot be run, so it counts as failed: {cause_of(error)}")
            return UnrunRow(repr(attack), label, str(attack.family), cause_of(error))
        return self.examiner.examine(crafted, label=label, setting="never seen")

    def crafted(self, attack: Attack, tried: int) -> CraftedSet:
        """Craft one attack on the first `tried` items that the model has right, as the recipe's attacks are crafted."""
        spec, work = self.subject.classifier.spec, self.further.work.suite
        size = attack.family.shard_items
        run = CraftSetup(
            self.model,
            grid_for(spec.input),
            spec.fingerprint,
            work,
            self.seed,
            shard_items=size,
            answering=self.subject.classifier.answering,
            executor=self.executor,
        )
        (found,) = craft(run, self.held_out.take(self.right[:tried]), [attack], progress=self.progress.items)
        return found

    def sizes(self, attacks: Mapping[str, Attack]) -> dict[str, int]:
        """Return the items that each attack is tried on, by label; numbers chosen before for this question stay."""

        def choose() -> dict[str, int]:
            planned = [self.probe(label, attack) for label, attack in attacks.items()]
            found = shared_out(planned, self.further.seconds)
            self.announce(planned, found)
            return found

        return self.further.work.choices.choice("suite", self.question(attacks), choose)

    def question(self, attacks: Mapping[str, Attack]) -> str:
        hashes = hashlib.sha256("".join(self.held_out.hashes.tolist()).encode()).hexdigest()
        fingerprint = self.subject.classifier.spec.fingerprint
        settings = (fingerprint, hashes, list(attacks.values()), self.further.seconds, self.seed)
        return cache_key(settings, (__name__,))

    def probe(self, label: str, attack: Attack) -> Planned:
        """Measure the speed and success of one attack on PROBED_ITEMS items; one that cannot be run takes no time."""
        if self.refusal(attack):
            return Planned(label, 0.0, 0)
        self.progress.note(f"speed of {label}")
        began = time.perf_counter()
        try:
            found = self.crafted(attack, PROBED_ITEMS)
        except UNRUNNABLE:
            return Planned(label, 0.0, PROBED_ITEMS)
        seconds = FORETOLD_TIME_FACTOR * (time.perf_counter() - began) / (found.tried * self.executor.workers)
        share = (len(found) + 1) / (found.tried + 2)
        wanted = min(math.ceil(TRIED_ITEMS_FACTOR * attack.family.min_verified_items / share), len(self.right))
        return Planned(label, seconds, max(wanted, PROBED_ITEMS))

    def announce(self, planned: Sequence[Planned], sizes: Mapping[str, int]) -> None:
        """Report the expected times before anything slow begins."""
        say = self.progress.say
        say(f"suite {self.further.suite.name}, {self.further.seconds / 60:g} min")
        table = new_table("attack", map(counts, ("items", "s/item", "minutes")))
        for one in planned:
            minutes = sizes[one.label] * one.seconds / 60
            table.add_row(one.label, str(sizes[one.label]), f"{one.seconds:.3f}", f"{minutes:.1f}")
        for line in plain_lines([table], width_columns=STAGE_WIDTH_COLUMNS):
            say(line)


def shared_out(planned: Sequence[Planned], seconds: float) -> dict[str, int]:
    """Share out the seconds and return items by label: what cheap attacks leave goes to dear ones."""
    found, left = {}, seconds
    cheapest = sorted(planned, key=lambda one: one.cost)
    for number, one in enumerate(cheapest):
        share = left / (len(cheapest) - number)
        found[one.label] = max(min(one.wanted, int(share / max(one.seconds, 1e-9))), min(PROBED_ITEMS, one.wanted))
        left = max(0.0, left - found[one.label] * one.seconds)
    return found


def cause_of(error: BaseException) -> str:
    """Return what an attack that cannot be run says, all of it in one line of a table."""
    return short(" ".join(str(error).split()) or type(error).__name__, 200)
