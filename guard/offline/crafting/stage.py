"""Crafting stage of `guard train`: measures its speed, says what it will take, and does it.

Rule 1: what is crafted follows from recipe, data and seed: neither speed, minutes nor workers change it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter
from guard.offline.crafting.engine import attack_model, choose_engine, compiled_model
from guard.offline.crafting.plan import (
    REPORTED_ITEMS,
    Budget,
    Plan,
    Row,
    Speed,
    more,
    read_plan,
    report_items,
    report_size,
    sizes,
    write_plan,
)
from guard.offline.crafting.shard import CraftSetup, shard_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.data.splits import Split
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier
from guard.offline.work.progress import Stage
from guard.offline.work.store import cache_key
from guard.offline.work.text import short

LEARNING = {Split.HEADS: 0.7, Split.COMBINER: 0.3}  # shares of the items that are attacked to fit on
MAX_PROBED_SHARDS = 8  # by which an attack's speed is measured, however many workers there are
TIMED_TRIES = 3  # of what is timed: the quickest counts


def learning_items(data: Dataset) -> Dataset:
    """Return the items to fit on, in an order whose every first part holds heads and combiner in proportion."""
    parts = {split: data.places(split) for split in LEARNING}
    places = [(np.arange(len(parts[split])) + 0.5) / share for split, share in LEARNING.items()]
    return data.take(np.concatenate(list(parts.values()))[np.argsort(np.concatenate(places), kind="stable")])


def craft_run(job: Job, classifier: Classifier, model: Model) -> CraftSetup:
    """Return the settings with which this job's attacks to fit on are crafted."""
    spec = classifier.spec
    return CraftSetup(
        model,
        grid_for(spec.input),
        spec.fingerprint,
        job.work.crafted,
        job.seed,
        workers=job.threads,
        answering=classifier.answering,
        executor=job.executor,
    )


def craft_all(
    job: Job, classifier: Classifier, data: Dataset, progress: Stage, *, fitting_s: float = 0.0
) -> tuple[CraftedSet, ...]:
    """Craft every attack of the recipe, on items of the splits that are fitted on.

    `fitting_s` is how many seconds fitting is forecast to take afterwards, for the plan.
    """
    planner = Planner(job, classifier, data, progress, time.monotonic(), fitting_s)
    if job.minutes is None:
        return follow(planner.target(TorchModel(classifier.graph)), job, progress)
    plan = read_plan(job.work, planner.key)
    if plan is None:
        plan = planner.make(job.minutes)
        write_plan(job.work, plan)
    else:
        progress.say("going on with the plan of before")
    for line in plan.lines():
        progress.say(line)
    target = planner.target(attack_model(classifier, data.images, job.work))
    return follow(target, job, progress, tried=[row.tried for row in plan.rows])


def follow(target: Crafter, job: Job, progress: Stage, tried: Sequence[int] | None = None) -> tuple[CraftedSet, ...]:
    """Craft each attack on the first whole shards that hold as many verified items as the recipe wants.

    `tried` is how many items that may take: if it takes more, more are tried. With `craft_items` all of those are.
    """
    attacks, wanted = job.recipe.attacks, job.recipe.items
    if job.craft_items is not None:
        return target.attacked(attacks, progress=progress.items)
    counts = [target.whole(items) for items in tried or [wanted] * len(attacks)]
    while True:
        found = target.attacked(attacks, tried=counts, progress=progress.items)
        enough = [
            target.whole(more(items, len(one), step=target.shard_size, available=target.items, wanted=wanted))
            for items, one in zip(counts, found, strict=True)
        ]
        if enough == counts:
            break
        for attack, one, items, fewer in zip(attacks, found, enough, counts, strict=True):
            if items > fewer:
                progress.say(f"{short(repr(attack), 36)}: {len(one)} of {fewer} verified; trying {items}")
        counts = enough
        del found, one  # before more is read: large items are most of the memory
    least = [target.enough(one, wanted) for one in found]
    if least == counts:
        return found
    del found
    return target.attacked(attacks, tried=least, progress=progress.items)


@dataclass(frozen=True)
class Planner:
    """Planner of the crafting stage: measures every attack's speed, and makes the plan."""

    job: Job
    classifier: Classifier
    data: Dataset
    progress: Stage
    began: float
    fitting_s: float = 0.0  # that fitting is forecast to take afterwards

    @property
    def key(self) -> str:
        """Cache key of the plan, over all that it is made for, but not over what is measured."""
        job, recipe = self.job, self.job.recipe
        given = (
            self.classifier.spec.fingerprint,
            recipe.attacks,
            recipe.left_out,
            recipe.items,
            job.minutes,
            job.seed,
            job.craft_items,
            job.attack_items,
        )
        hashes = "".join(learning_items(self.data).hashes.tolist())
        return cache_key((given, hashes, len(self.data.places(Split.TEST))), (__name__,))

    def target(self, model: Model) -> Crafter:
        """Open a crafter of the items to fit on."""
        items = learning_items(self.data).take(slice(self.job.craft_items))
        return Crafter.open(craft_run(self.job, self.classifier, model), items)

    def make(self, minutes: float) -> Plan:
        data, recipe = self.data, self.job.recipe
        self.progress.note("choosing torch or ONNX Runtime")
        learning = learning_items(data)
        batch = learning.images[: shard_items(data.item_shape)]
        engine, reason = choose_engine(self.classifier, batch, self.job.work)
        compiled = engine != "torch"
        model = compiled_model(self.classifier, batch, self.job.work) if compiled else TorchModel(self.classifier.graph)
        target = self.target(model)
        seen = [self.probe(target, attack) for attack in recipe.attacks]
        left_out = [self.probe(target, attack) for attack in recipe.left_out]
        accuracy = target.items / len(learning.take(slice(self.job.craft_items)))
        held_out = len(data.part(Split.TEST))
        every = (*seen, *left_out)
        wanted = [self.job.attack_items or report_items(speed, accuracy, held_out) for speed in every]
        if self.job.craft_items is None:
            rows = sizes(seen, target.items, recipe.items, step=target.shard_size)
        else:
            rows = tuple(Row(speed.attack, speed.seconds, speed.share, target.items) for speed in seen)
        budget = Budget(
            minutes=minutes,
            spent=(time.monotonic() - self.began) / 60,
            fitting=self.fitting_s / 60,
            report=sum(n * accuracy * speed.seconds for n, speed in zip(wanted, every, strict=True)) / 60,
            adaptive=bool(recipe.adaptive_budgets),
        )
        whole_items = min(wanted, default=REPORTED_ITEMS)
        crafting = sum(row.minutes for row in rows)
        return Plan(
            self.key,
            engine,
            reason,
            target.run.threads,
            target.items,
            recipe.items,
            budget,
            rows,
            whole_items,
            self.job.attack_items or report_size(budget, crafting, whole_items),
        )

    def probe(self, target: Crafter, attack: Attack) -> Speed:
        """Measure an attack on one shard per worker, or on a few; the shards are kept and count.

        What is learned for the block of such a shard serves all items of the block, and its time is shared among them.
        """
        self.progress.note(f"speed of {attack!r}")
        workers = target.run.threads
        shards = min(workers, MAX_PROBED_SHARDS)
        tried = shards * target.shard_size
        began = time.perf_counter()
        target.learn(attack, tried=tried, anew=True)
        between = time.perf_counter()
        (found,) = target.attacked([attack], tried=[tried], anew=True)
        ended = time.perf_counter()
        served = sum(len(shard) for block in target.blocks(tried) for shard in block)
        seconds = ((between - began) / served + (ended - between) / found.tried) * shards / workers
        return Speed(repr(attack), seconds, (len(found) + 1) / (found.tried + 2))
