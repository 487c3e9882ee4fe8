"""Crafted sets: clean items, what an attack made of them, and noise of the same size, each with its provenance.

Rule 1: an item is attacked only if the model verifiably answers its final form otherwise: on the grid, in box and ball.
Rule 2: only items that the model classifies correctly are attacked: every attacked item is the attack's doing.
Rule 3: a shard is found again only by all that it follows from; an interrupted run ends as any other, bit for bit.

    images ─► correct ones ─► shards ─► learn ─► attack ─► snap ─► verify ─► noise ─► .npz ─► CraftedSet
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import DataError
from guard.offline.attacks.attack import Attack, LearningAttack, Model
from guard.offline.attacks.norm_ball import sizes
from guard.offline.crafting.checks import check, check_budgets
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.learning import Ready, in_shards, learn, lots_of
from guard.offline.crafting.shard import CraftRun, Shard, ShardOutcome, answer, resume, shard_items
from guard.offline.data.grid import Images
from guard.offline.work.parallel import Stop, cores, side_by_side

Progress = Callable[[object, int, int], None]  # the attack, or that it learns; items done, items in all


@dataclass(frozen=True, eq=False)
class Crafter:
    """A model and the clean items that it has right, in shards, ready to be attacked."""

    job: CraftRun
    shards: tuple[Shard, ...]
    workers: int

    @staticmethod
    def open(
        model: Model,
        images: Images,
        labels: NDArray[np.int64],
        hashes: Sequence[str] | NDArray[np.str_],
        *,
        grid: int | None,
        fingerprint: str,
        work: Path,
        seed: int,
        groups: Sequence[str] | NDArray[np.str_] | None = None,
        shard_size: int | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Crafter:
        """Arguments and errors are those of `craft`."""
        names = np.asarray(hashes, dtype="<U64")
        size = shard_items(images.shape[1:]) if shard_size is None else shard_size
        told = np.asarray([""] * len(images) if groups is None else groups, dtype=np.str_)
        check(model, images, labels, names, told, grid, size)
        count = cores() if workers is None else workers
        job = CraftRun(
            model, getattr(model, "engine", "torch"), grid, fingerprint, work, seed, torch.device(device), Stop()
        )
        parts = np.split(images, range(size, len(images), size))
        logits = np.concatenate(side_by_side([partial(answer, job, part) for part in parts], count, job.stop))
        if labels.max() >= logits.shape[1]:
            raise DataError(f"label {labels.max()} does not exist: the model tells {logits.shape[1]} classes apart")
        correct = np.flatnonzero(logits.argmax(axis=1) == labels)
        if len(correct) == 0:
            raise DataError(
                f"the model classifies none of {len(images)} items correctly; are labels and value range right?"
            )
        shards = (
            Shard(number, part, images[part], labels[part], names[part], group)
            for number, (group, part) in enumerate(in_shards(correct, told, size))
        )
        return Crafter(job, tuple(shards), count)

    @property
    def items(self) -> int:
        """That can be attacked."""
        return sum(len(shard.source) for shard in self.shards)

    @property
    def shard_size(self) -> int:
        """Items of a full shard."""
        return max(len(shard.source) for shard in self.shards)

    def prefix(self, items: int | None) -> list[Shard]:
        """The first items, in shards; all of them for None."""
        if items is None:
            return list(self.shards)
        ends = np.cumsum([len(shard.source) for shard in self.shards])
        starts = (ends - [len(shard.source) for shard in self.shards]).tolist()
        return [shard.first(items - start) for start, shard in zip(starts, self.shards, strict=True) if start < items]

    def lots(self, items: int | None) -> list[tuple[Shard, ...]]:
        """Those that the first items belong to; an attack that learns first learns from each as a whole."""
        found = lots_of(self.shards)
        return list(dict.fromkeys(found[shard.number] for shard in self.prefix(items)))

    def learn(
        self, attack: Attack, *, tried: int | None = None, progress: Progress | None = None, anew: bool = False
    ) -> dict[int, Ready]:
        """The attack as it meets each shard, by its number: one that learns first has done so, lot by lot.

        `anew`: whatever has been learned.
        """
        if not isinstance(attack, LearningAttack):
            return {shard.number: Ready(attack) for shard in self.shards}
        job, lots = replace(self.job, stop=Stop()), self.lots(tried)
        ends = np.cumsum([min(attack.learning_items, sum(len(shard.source) for shard in lot)) for lot in lots]).tolist()

        def tell(number: int) -> None:
            if progress is not None:
                progress(f"learning {attack!r}", ends[number], ends[-1])

        calls = [partial(learn, job, attack, lot, anew=anew) for lot in lots]
        ready = side_by_side(calls, self.workers, job.stop, tell)
        return {shard.number: one for lot, one in zip(lots, ready, strict=True) for shard in lot}

    def attacked(
        self,
        attacks: Sequence[Attack],
        *,
        tried: Sequence[int | None] | None = None,
        progress: Progress | None = None,
        anew: bool = False,
    ) -> tuple[CraftedSet, ...]:
        """One set an attack; `tried` is how many of the first items each is tried on, unless it is all of them.

        `anew`: whatever shards are there, but with what was learned for them. Raises ConfigError for an L∞ budget below
        one step of the grid.
        """
        check_budgets(attacks, self.job.grid)
        counts = tried or [None] * len(attacks)
        ready = [self.learn(one, tried=count, progress=progress) for one, count in zip(attacks, counts, strict=True)]
        job = replace(self.job, stop=Stop())
        shards = [self.prefix(count) for count in counts]
        totals = [sum(len(shard.source) for shard in own) for own in shards]
        steps = [(place, shard) for place, own in enumerate(shards) for shard in own]
        done = [0] * len(attacks)

        def tell(number: int) -> None:
            place, shard = steps[number]
            done[place] += len(shard.source)
            if progress is not None:
                progress(attacks[place], done[place], totals[place])

        calls = [call_of(job, ready[place][shard.number], shard, anew=anew) for place, shard in steps]
        outcomes = iter(side_by_side(calls, self.workers, job.stop, tell))
        return tuple(
            collect(job, attack, own, [next(outcomes) for _ in own])
            for attack, own in zip(attacks, shards, strict=True)
        )


def call_of(job: CraftRun, ready: Ready, shard: Shard, *, anew: bool) -> Callable[[], ShardOutcome]:
    return partial(resume, job, ready.attack, shard, learned=ready.digest, anew=anew)


def craft(
    model: Model,
    images: Images,
    labels: NDArray[np.int64],
    hashes: Sequence[str] | NDArray[np.str_],
    attacks: Sequence[Attack],
    *,
    grid: int | None,
    fingerprint: str,
    work: Path,
    seed: int,
    progress: Progress | None = None,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[CraftedSet, ...]:
    """Attack the unit-space `images` that `model` gets right; one set an attack, in the order given.

    `work` holds the finished shards: called again, only what is missing is computed. `workers` threads, as many as
    there are cores unless given, attack shards side by side; the sets are the same for any number. No attack learns
    from items of one of the `groups` [item] in order to attack another.

    Raises:
        DataError: images, labels and hashes do not fit each other, unit space or grid, or the model gets none right.
        ModelError: the model is in training mode, or its logits are no finite [item, class].
        ConfigError: an L∞ budget below one step of the grid, or a shard without items.
    """
    check_budgets(attacks, grid)
    target = Crafter.open(
        model,
        images,
        labels,
        hashes,
        grid=grid,
        fingerprint=fingerprint,
        work=work,
        seed=seed,
        groups=groups,
        shard_size=shard_size,
        workers=workers,
        device=device,
    )
    return target.attacked(attacks, progress=progress)


def collect(job: CraftRun, attack: Attack, shards: Sequence[Shard], outcomes: Sequence[ShardOutcome]) -> CraftedSet:
    pairs = list(zip(shards, outcomes, strict=True))
    clean = np.concatenate([shard.images[outcome.kept] for shard, outcome in pairs])
    attacked = np.concatenate([outcome.attacked for outcome in outcomes])
    perturbation = torch.from_numpy(attacked.astype(np.float64) - clean)
    return CraftedSet(
        attack=repr(attack),
        name=attack.name,
        family=attack.family,
        norm=attack.norm,
        budget=attack.budget,
        grid=job.grid,
        seed=job.seed,
        fingerprint=job.fingerprint,
        tried_hashes=np.concatenate([shard.hashes for shard in shards]),
        source=np.concatenate([shard.source[outcome.kept] for shard, outcome in pairs]),
        hashes=np.concatenate([shard.hashes[outcome.kept] for shard, outcome in pairs]),
        labels=np.concatenate([shard.labels[outcome.kept] for shard, outcome in pairs]),
        predictions=np.concatenate([outcome.predictions for outcome in outcomes]),
        clean=clean,
        attacked=attacked,
        noise=np.concatenate([outcome.noise for outcome in outcomes]),
        l2=sizes(perturbation, "l2").numpy().astype(np.float32),
        linf=sizes(perturbation, "linf").numpy().astype(np.float32),
    )
