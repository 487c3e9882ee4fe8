"""Crafted sets: clean items, their attacked versions, and noise of the same size, each with its provenance.

Rule 1: an item counts as attacked only if the model verifiably answers its final form otherwise: on the grid, in box
and ball.
Rule 2: only items that the model classifies correctly are attacked: every wrong answer is the attack's doing. Of a
closed model and its student, which is attacked in its place, both must have an item right.
Rule 3: a shard's file is used again only if all that it follows from is the same; an interrupted run ends as any other,
bit for bit.

    images ─► correct ones ─► shards ─► learn ─► attack ─► snap ─► verify ─► noise ─► .npz ─► CraftedSet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import DataError
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.norm_ball import sizes
from guard.offline.attacks.ranges import largest
from guard.offline.crafting.checks import check, check_budgets
from guard.offline.crafting.crafted_set import CraftedSet, Transfer
from guard.offline.crafting.learning import LearningTask, Ready, blocks_of, in_shards, learn
from guard.offline.crafting.shard import (
    CraftSetup,
    Shard,
    ShardOutcome,
    ShardTask,
    answered,
    attacked_shard,
    shard_items,
)
from guard.offline.data.dataset import Dataset
from guard.offline.work.tasks import Tasks, resumed

Progress = Callable[[object, int, int], None]  # (the attack or a text, items done, items in all)


@dataclass(frozen=True, eq=False)
class Crafter:
    """Model and the clean items that it classifies correctly, in shards, ready to be attacked."""

    run: CraftSetup
    shards: tuple[Shard, ...]

    @staticmethod
    def open(run: CraftSetup, items: Dataset) -> Crafter:
        """Classify every item, and divide the correctly classified ones into shards. Errors are those of `craft`."""
        items = items.in_memory()
        check(run, items)
        size = shard_items(items.item_shape) if run.shard_items is None else run.shard_items
        parts = np.split(items.images[:], range(size, len(items), size))
        logits = np.concatenate(run.runs_on.run(Tasks(answered, run, parts)))
        if items.labels.max() >= logits.shape[1]:
            raise DataError(
                f"label {items.labels.max()} does not exist: the model tells {logits.shape[1]} classes apart"
            )
        right = logits.argmax(axis=1) == items.labels
        if run.answering is not None:
            right &= run.answering.predict(items.images[:]) == items.labels
        correct = np.flatnonzero(right)
        if len(correct) == 0:
            raise DataError(
                f"the model classifies none of {len(items)} items correctly; are labels and value range right?"
            )
        shards = (
            Shard(number, part, items.take(part), group)
            for number, (group, part) in enumerate(in_shards(correct, items.groups, size))
        )
        return Crafter(run, tuple(shards))

    @property
    def items(self) -> int:
        """Number of items that can be attacked."""
        return sum(len(shard) for shard in self.shards)

    @property
    def shard_size(self) -> int:
        """Number of items in the largest shard."""
        return max(len(shard) for shard in self.shards)

    def prefix(self, items: int | None) -> list[Shard]:
        """Return the first items, in shards; all of them for None."""
        if items is None:
            return list(self.shards)
        ends = np.cumsum([len(shard) for shard in self.shards])
        starts = (ends - [len(shard) for shard in self.shards]).tolist()
        return [shard.first(items - start) for start, shard in zip(starts, self.shards, strict=True) if start < items]

    def whole(self, items: int) -> int:
        """Return the number of items of the fewest whole shards that hold so many; of all where there are fewer."""
        ends = np.cumsum([len(shard) for shard in self.shards])
        return int(ends[min(int(ends.searchsorted(items)), len(ends) - 1)])

    def enough(self, found: CraftedSet, wanted: int) -> int:
        """Return the items of the fewest whole shards of a crafted set with so many verified; all tried if too few.

        So a crafted set is the same however many items were tried on the way to it.
        """
        own = self.prefix(found.tried)
        verified = np.cumsum([np.isin(shard.source, found.source).sum() for shard in own])
        last = min(int(verified.searchsorted(wanted)), len(own) - 1)
        return sum(len(shard) for shard in own[: last + 1])

    def blocks(self, items: int | None) -> list[tuple[Shard, ...]]:
        """Return the blocks that the first items belong to; an attack that learns first learns from whole blocks."""
        found = blocks_of(self.shards)
        return list(dict.fromkeys(found[shard.number] for shard in self.prefix(items)))

    def learn(
        self, attack: Attack, *, tried: int | None = None, progress: Progress | None = None, anew: bool = False
    ) -> dict[int, Ready]:
        """Return the attack for each shard, by shard number; an attack that learns first has learned, block by block.

        `anew`: learn even where a result is stored.
        """
        if not learns(attack):
            return {shard.number: Ready(attack) for shard in self.shards}
        run, blocks = self.run, self.blocks(tried)
        parts = [LearningTask.of(run, attack, block) for block in blocks]
        done = 0

        def tell(number: int) -> None:
            nonlocal done
            done += len(parts[number].learned)
            if progress is not None:
                progress(f"learning {attack!r}", done, sum(len(part.learned) for part in parts))

        places = [part.place(run.work) for part in parts]
        knowledge = resumed(run.runs_on, Tasks(learn, run, parts), places, anew=anew, done=tell)
        ready = [part.ready(known) for part, known in zip(parts, knowledge, strict=True)]
        return {shard.number: one for block, one in zip(blocks, ready, strict=True) for shard in block}

    def attacked(
        self,
        attacks: Sequence[Attack],
        *,
        tried: Sequence[int | None] | None = None,
        progress: Progress | None = None,
        anew: bool = False,
    ) -> tuple[CraftedSet, ...]:
        """Attack the items; return one crafted set for each attack.

        `tried` is how many of the first items each attack is tried on; None is all of them. `anew`: compute shards even
        where files are stored, but with stored learning. Raises ConfigError for a budget that moves nothing.
        """
        check_budgets(attacks, self.run.grid, self.shards[0].items.item_shape)
        counts = tried or [None] * len(attacks)
        ready = [self.learn(one, tried=count, progress=progress) for one, count in zip(attacks, counts, strict=True)]
        run = self.run
        shards = [self.prefix(count) for count in counts]
        totals = [sum(len(shard) for shard in own) for own in shards]
        steps = [(place, shard) for place, own in enumerate(shards) for shard in own]
        done = [0] * len(attacks)

        def tell(number: int) -> None:
            place, shard = steps[number]
            done[place] += len(shard)
            if progress is not None:
                progress(attacks[place], done[place], totals[place])

        known = [(ready[place][shard.number], shard) for place, shard in steps]
        parts = [ShardTask.of(run, one.attack, shard, one.digest) for one, shard in known]
        places = [part.place(run.work) for part in parts]
        outcomes = deque(resumed(run.runs_on, Tasks(attacked_shard, run, parts), places, anew=anew, done=tell))
        return tuple(
            collect(run, attack, own, [ShardOutcome(**outcomes.popleft()) for _ in own])
            for attack, own in zip(attacks, shards, strict=True)
        )


def craft(
    run: CraftSetup, items: Dataset, attacks: Sequence[Attack], *, progress: Progress | None = None
) -> tuple[CraftedSet, ...]:
    """Attack the items that the model classifies correctly; return one crafted set for each attack, in the order given.

    No attack learns from items of one split in order to attack those of another.

    Raises:
        DataError: images, labels and hashes do not fit each other, unit space or grid, or the model gets none right.
        ModelError: the model is in training mode, or its logits are no finite [item, class].
        ConfigError: an L∞ budget below one step of the grid, or a shard without items.
    """
    check_budgets(attacks, run.grid, items.item_shape)
    return Crafter.open(run, items).attacked(attacks, progress=progress)


def collect(run: CraftSetup, attack: Attack, shards: Sequence[Shard], outcomes: list[ShardOutcome]) -> CraftedSet:
    """Join the verified items of all shards of one attack into its crafted set; `outcomes` is emptied on the way.

    So large items are in memory once, and those of one shard beside them.
    """
    kept = [outcome.kept for outcome in outcomes]
    found = CraftedSet(
        attack=repr(attack),
        name=attack.name,
        family=attack.family,
        norm=attack.norm,
        budget=largest(attack.budget),
        grid=run.grid,
        seed=run.seed,
        fingerprint=run.fingerprint,
        tried_hashes=np.concatenate([shard.items.hashes for shard in shards]),
        source=np.concatenate([shard.source[places] for shard, places in zip(shards, kept, strict=True)]),
        hashes=np.concatenate([shard.items.hashes[places] for shard, places in zip(shards, kept, strict=True)]),
        labels=np.concatenate([shard.items.labels[places] for shard, places in zip(shards, kept, strict=True)]),
        predictions=np.concatenate([outcome.predictions for outcome in outcomes]),
        **room_for(sum(map(len, kept)), shards[0].items.item_shape),
        transfer=None
        if run.answering is None
        else transfer_of([(shard.items.labels, outcome) for shard, outcome in zip(shards, outcomes, strict=True)]),
        budgets=np.concatenate([outcome.budgets[outcome.kept] for outcome in outcomes]),
        tried_budgets=np.concatenate([outcome.budgets for outcome in outcomes]),
    )
    start = 0
    outcomes.reverse()
    for shard in shards:
        outcome = outcomes.pop()
        here = slice(start, start := start + len(outcome.kept))
        clean = found.clean[here] = shard.items.images[outcome.kept]
        found.attacked[here], found.noise[here] = outcome.attacked, outcome.noise
        perturbation = torch.from_numpy(outcome.attacked.astype(np.float64) - clean)
        found.l2[here], found.linf[here] = sizes(perturbation, "l2").numpy(), sizes(perturbation, "linf").numpy()
    return found


def room_for(items: int, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Return zeros for what a crafted set holds of so many items and of their perturbations."""
    images = {name: np.zeros((items, *shape), np.float32) for name in ("clean", "attacked", "noise")}
    return images | {name: np.zeros(items, np.float32) for name in ("l2", "linf")}


def transfer_of(outcomes: Sequence[tuple[NDArray[np.int64], ShardOutcome]]) -> Transfer:
    """Count how a closed model answers what was crafted on its student; `outcomes` are those of shards, with labels."""
    blank = np.zeros(0, np.int64)
    labels = np.concatenate([blank, *(one for one, _ in outcomes)])
    misled = np.concatenate([blank, *(outcome.misled for _, outcome in outcomes)])
    answered = np.concatenate([blank, *(outcome.answered for _, outcome in outcomes)])
    fooling = misled != labels
    return Transfer(
        tried=len(labels),
        agreed=int((misled == answered).sum()),
        misled=int(fooling.sum()),
        transferred=int((fooling & (answered != labels)).sum()),
    )
