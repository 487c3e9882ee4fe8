"""Blocks: a few shards of one group, and what an attack that learns first learns from their items alone.

Rule 1: an attack learns from the items of a block and attacks those alone: nothing crosses from one group, a split, to
another; and where one perturbation serves all items, a detector meets as many of them as there are blocks.
Rule 2: stored knowledge is used again only if all that it follows from is the same, and a shard only if the attack knew
the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.offline.attacks.attack import Attack, LearningAttack
from guard.offline.attacks.feature_model import as_allowed
from guard.offline.attacks.informed import Informed
from guard.offline.crafting.shard import CODE, CraftSetup, Shard, identify, modules_of
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.work.store import KeptArrays, ResultStore, cache_key
from guard.offline.work.tasks import Watch

BLOCK_SHARDS = 4  # in a block; a rest of a group of less than half as many joins the block before


@dataclass(frozen=True, eq=False)
class Ready:
    """Attack that can be called, with a digest that distinguishes what it has learned."""

    attack: Attack
    digest: str = ""


def in_shards(
    places: NDArray[np.int64], groups: NDArray[np.str_], size: int
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Divide places into parts of `size`, each of one group, so that any first parts hold the groups in proportion.

    What is left of each group, fewer than `size`, comes last.
    """
    parts: list[tuple[tuple[bool, float], str, NDArray[np.int64]]] = []
    for group in dict.fromkeys(groups[places].tolist()):
        own = places[groups[places] == group]
        pieces = np.split(own, range(size, len(own), size))
        parts += [
            ((len(piece) < size, (number + 0.5) / len(pieces)), group, piece) for number, piece in enumerate(pieces)
        ]
    yield from ((group, piece) for _, group, piece in sorted(parts, key=lambda part: part[0]))


def blocks_of(shards: Sequence[Shard]) -> Mapping[int, tuple[Shard, ...]]:
    """Return the block of each shard, by shard number."""
    found: dict[int, tuple[Shard, ...]] = {}
    for group in dict.fromkeys(shard.group for shard in shards):
        own = [shard for shard in shards if shard.group == group]
        starts = [
            start for start in range(0, len(own), BLOCK_SHARDS) if start == 0 or 2 * (len(own) - start) >= BLOCK_SHARDS
        ]
        for start, end in zip(starts, [*starts[1:], len(own)], strict=True):
            found |= {shard.number: tuple(own[start:end]) for shard in own[start:end]}
    return found


def learned_from(attack: LearningAttack, block: Sequence[Shard]) -> Shard:
    """Join the items of a block that an attack learns from, under the number of the block's first shard."""
    first = block[0]
    images, labels, hashes = (
        np.concatenate([getattr(shard.items, name) for shard in block]) for name in ("images", "labels", "hashes")
    )
    items = replace(first.items, images=images, labels=labels, hashes=hashes)
    joined = Shard(first.number, np.concatenate([shard.source for shard in block]), items, first.group)
    return joined.first(attack.learning_items)


@dataclass(frozen=True, eq=False)
class LearningTask:
    """Task of an attack that learns from the items of one block."""

    attack: Any  # a LearningAttack
    learned: Shard  # the items that it learns from
    identity: str

    @staticmethod
    def of(run: CraftSetup, attack: LearningAttack, block: Sequence[Shard]) -> LearningTask:
        learned = learned_from(attack, block)
        identity = hashlib.sha256(f"learned {identify(run, attack, learned)}".encode()).hexdigest()
        return LearningTask(attack, learned, identity)

    def place(self, work: ResultStore) -> KeptArrays:
        """Return where the knowledge is kept."""
        name = f"{self.attack.name}-learned-{self.learned.number:05d}"
        return work.place(name, cache_key(self.identity, (*CODE, *modules_of(self.attack))))

    def ready(self, knowledge: Mapping[str, NDArray[Any]]) -> Ready:
        """Return the attack with what it has learned."""
        tensors = {name: torch.from_numpy(array) for name, array in knowledge.items()}
        return Ready(Informed(self.attack, tensors), digest_of(knowledge))


def learn(run: CraftSetup, task: LearningTask, watch: Watch) -> dict[str, NDArray[Any]]:
    """Return what an attack learns, as arrays by name."""
    inputs = torch.from_numpy(task.learned.items.images).to(run.device)
    labels = torch.from_numpy(task.learned.items.labels).to(run.device)
    generator = torch.Generator().manual_seed(int(task.identity[:15], 16))
    found = task.attack.learn(as_allowed(StoppableModel(run.model, watch), run.grid), inputs, labels, generator)
    return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in found.items()}


def digest_of(knowledge: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) over names and contents of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(knowledge.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
