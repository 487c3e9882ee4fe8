"""Shard: some items attacked in one batch, their outcome, and the file that keeps it.

Rule 1: a file is whole or it is not there; one that cannot be read counts as not there, and is made anew.
Rule 2: a shard's file is named by all that its outcome follows from, what computed it included.
Rule 3: where the attacked graph is the student of a closed model, an item counts once that model's own answer is wrong.

How it works. Correctly classified items are divided into shards of one split each (`learning.py`). A shard is attacked
in one batch; the result is brought into box, ball and grid, the model answers it once more, and only the items whose
answer is wrong are kept, with noise of the same size. The outcome is written to a file, and a later run with the same
key reads it.

For example 100 correctly classified images of 3 x 32 x 32 values, 70 of the split `heads` and 30 of `combiner`. A shard
holds 64 of them, so there are three shards: 64 of `heads`, 30 of `combiner`, and the 6 of `heads` that are left. Two
attacks write 2 x 3 files. PGD's first is pgd-00000-KEY.npz; if PGD fools the model on 60 of these 64 items, it holds
60. Larger images make smaller shards: 21 items of 3 x 128 x 128 values, 8 of 3 x 224 x 224. Without splits, 100 items
are two shards, of 64 and of 36.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ModelError
from guard.offline.attacks.attack import Attack, knows_features
from guard.offline.attacks.feature_model import as_allowed
from guard.offline.attacks.model import Model
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import Size, into_reach, part_of
from guard.offline.attacks.objective import gap
from guard.offline.attacks.ranges import drawn_for, settled
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.data.dataset import Dataset
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import Grid, Images, snap, snap_within
from guard.offline.data.norms import Measure
from guard.offline.model.answering import Answering
from guard.offline.work.parallel import Threads
from guard.offline.work.store import KeptArrays, ResultStore, cache_key
from guard.offline.work.tasks import Executor, Watch

MAX_SHARD_VALUES = 2**20  # in a shard, at most; but a shard has at least eight items


SEED_VERSION = 2  # part of what seeds an attack's randomness: another number gives other draws
# What a shard's outcome follows from, beside the attack itself: how it is crafted, and what answers for the model.
CODE = (__name__, "guard.offline.crafting.onnx_model", "guard.offline.model.open_model")
# Lead of the wrong class, as a share of the logits' length, above which an item counts as fooled: below it ONNX Runtime
# may answer otherwise (the law of parity).
FOOLED_LEAD_SHARE = 2e-4
STRETCH_FACTORS = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class Shard:
    """Correctly classified items that are attacked in one batch."""

    number: int
    source: NDArray[np.int64]  # [tried] places in the data given
    items: Dataset
    group: str = ""  # the split of all its items: attacks learn within one

    def __len__(self) -> int:
        return len(self.items)

    def first(self, items: int) -> Shard:
        """Return a shard of the first items alone, which is another shard with another outcome."""
        part = slice(items)
        return self if items >= len(self) else Shard(self.number, self.source[part], self.items.take(part), self.group)


@dataclass(frozen=True, eq=False)
class ShardOutcome:
    """Outcome of an attacked shard, as its file holds it."""

    kept: NDArray[np.int64]  # [item] places within the shard of the verified items
    predictions: NDArray[np.int64]
    attacked: Images
    noise: Images
    misled: NDArray[np.int64]  # [tried] answers of the attacked graph to the last form that was tried
    answered: NDArray[np.int64]  # [tried] and of the closed model behind it; the same where there is none
    budgets: NDArray[np.float32]  # [tried] of each item; infinite where the attack has none


@dataclass(frozen=True)
class CraftSetup:
    """Settings that a run of crafting follows from, beside items and attacks, and how it is carried out."""

    model: Model
    grid: Grid  # of the items
    fingerprint: str  # of the model
    work: ResultStore  # holds finished shards: called again, only what is missing is computed
    seed: int
    shard_items: int | None = None  # None: as many as fit into a small memory
    workers: int | None = None  # threads that attack side by side, which changes no bit; None: one a core
    device: torch.device | str = "cpu"
    answering: Answering | None = None  # the closed model whose student `model` is
    executor: Executor | None = None  # what attacks the shards; None: threads of this process, `workers` of them

    @property
    def runs_on(self) -> Executor:
        """What attacks the shards."""
        return Threads(self.workers) if self.executor is None else self.executor

    @property
    def threads(self) -> int:
        """Number of shards that are attacked at once."""
        return self.runs_on.workers


@dataclass(frozen=True, eq=False)
class ShardTask:
    """Task of attacking one shard."""

    attack: Attack
    shard: Shard
    identity: str

    @staticmethod
    def of(run: CraftSetup, attack: Attack, shard: Shard, learned: str = "") -> ShardTask:
        """Return the task; `learned` is the digest of what the attack knows."""
        return ShardTask(attack, shard, identify(run, attack, shard, learned))

    def place(self, work: ResultStore) -> KeptArrays:
        """Return where the outcome is kept."""
        name = f"{self.attack.name}-{self.shard.number:05d}"
        names = [field.name for field in dataclasses.fields(ShardOutcome)]
        return work.place(name, cache_key(self.identity, (*CODE, *modules_of(self.attack))), names)


def attacked_shard(run: CraftSetup, task: ShardTask, watch: Watch) -> dict[str, NDArray[Any]]:
    """Attack a shard, and return its outcome as arrays."""
    return vars(attack_shard(run, task.attack, task.shard, task.identity, watch))


def modules_of(attack: Any) -> list[str]:
    """List the modules that hold an attack's code, and the code of the attacks that it is made of."""
    settings = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    parts = [getattr(attack, setting.name) for setting in settings]
    inner = [part for part in parts if dataclasses.is_dataclass(part) and not isinstance(part, type)]
    return [type(attack).__module__, *(module for part in inner for module in modules_of(part))]


def identify(run: CraftSetup, attack: Attack, shard: Shard, learned: str = "") -> str:
    """Return the SHA-256 (hex) over all that an outcome follows from but the code; it seeds the attack's randomness."""
    items = shard.items
    given = (SEED_VERSION, run.fingerprint, run.model.engine, repr(attack), run.grid, run.seed, shard.number)
    digest = hashlib.sha256(repr(given).encode())
    digest.update(b"" if run.answering is None else run.answering.identity.encode())
    digest.update(repr((items.images.shape, items.labels.tolist(), items.hashes.tolist())).encode())
    digest.update(np.ascontiguousarray(items.images, dtype="<f4").tobytes())
    digest.update(learned.encode())
    return digest.hexdigest()


def attack_shard(run: CraftSetup, attack: Attack, shard: Shard, identity: str, watch: Watch) -> ShardOutcome:
    generator = torch.Generator().manual_seed(int(identity[:15], 16))
    items = shard.items
    clean, labels = torch.from_numpy(items.images).to(run.device), torch.from_numpy(items.labels).to(run.device)
    step = 1 / run.grid if isinstance(run.grid, int) else None
    own = drawn_for(attack, items.hashes.tolist(), run.seed, step=step)
    raw = attacked_by(own, run, StoppableModel(run.model, watch), clean, labels, generator).cpu().numpy()
    final = settle(run, own, shard, raw)
    kept, attacked = np.flatnonzero(final.fooled), final.items
    before, after = torch.from_numpy(items.images[kept]), torch.from_numpy(attacked[kept])
    noise = shuffled(before, after, generator, run.grid).numpy()
    return ShardOutcome(
        kept,
        final.answered[kept],
        attacked[kept],
        snap(noise, run.grid),
        final.misled,
        final.answered,
        np.broadcast_to(np.float32(np.inf if own.budget is None else settled(own.budget)), len(items)).copy(),
    )


def attacked_by(
    attack: Attack, run: CraftSetup, model: Model, clean: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Return what an attack makes of clean items; of a table it sees the model as features allow."""
    if isinstance(run.grid, FeatureGrid) and knows_features(attack):
        return attack.among(run.grid, model, clean, labels, generator)
    return attack(as_allowed(model, run.grid), clean, labels, generator)


@dataclass(frozen=True, eq=False)
class Settled:
    """The final attacked items [tried] of a shard, and the answers to them."""

    items: Images
    misled: NDArray[np.int64]  # by the attacked graph
    answered: NDArray[np.int64]  # by what answers for the model
    fooled: NDArray[np.bool_]


def settle(run: CraftSetup, attack: Attack, shard: Shard, raw: Images) -> Settled:
    """Bring attacked items into their final form, and find out which of them fool the model.

    An attack without a budget ends so close to the boundary that snapping takes many back over it: its perturbation is
    stretched until the snapped item fools, up to fourfold. An attack that no norm measures is not stretched.
    """
    items = shard.items
    final = items.images[:].copy()
    misled, answered = items.labels.copy(), items.labels.copy()
    fooled = np.zeros(len(final), dtype=bool)
    for stretch in STRETCH_FACTORS if attack.budget is None and attack.norm != "none" else (1.0,):
        left = np.flatnonzero(~fooled)
        if len(left) == 0:
            break
        clean = items.images[left]
        budget = None if attack.budget is None else part_of(settled(attack.budget), torch.from_numpy(left))
        tried = into_place(run, attack.norm, budget, clean, clean + np.float32(stretch) * (raw[left] - clean))
        logits = torch.from_numpy(answer(run, tried))
        ahead = gap(logits, torch.from_numpy(items.labels[left]))
        hit = (ahead > FOOLED_LEAD_SHARE * torch.linalg.vector_norm(logits, dim=1)).numpy()
        misled[left] = np.where(hit, logits.argmax(dim=1).numpy(), items.labels[left])
        answered[left] = misled[left] if run.answering is None else run.answering.predict(tried)
        hit = answered[left] != items.labels[left]
        final[left[hit]], fooled[left[hit]] = tried[hit], True
    return Settled(final, misled, answered, fooled)


def into_place(run: CraftSetup, norm: Measure, budget: Size | None, clean: Images, points: Images) -> Images:
    """Bring points into the unit box and the ball, of each item's own budget or of one, and onto the grid."""
    if run.grid is not None:
        most = budget.cpu().numpy() if isinstance(budget, Tensor) else budget
        return snap_within(points, clean, run.grid, most, norm)
    if budget is None or norm == "l0" or norm == "none":
        return points.clip(0, 1)
    reached: Tensor = into_reach(torch.from_numpy(points), torch.from_numpy(clean), budget, norm)
    return np.asarray(reached.numpy(), dtype=np.float32)


def answered(run: CraftSetup, images: Images, watch: Watch) -> NDArray[np.float32]:
    """Return the model's logits [item, class], as a task."""
    watch.look()
    return answer(run, images)


def answer(run: CraftSetup, images: Images) -> NDArray[np.float32]:
    """Return the model's logits [item, class]. Raises ModelError for another shape, NaN or infinity."""
    with torch.no_grad():
        logits = run.model(torch.tensor(images, device=run.device)).cpu()
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise ModelError(
            f"the model answers {len(images)} items with {list(logits.shape)}; wanted logits [item, class]"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError("the model's logits hold NaN or infinity; its weights or the inputs' range are wrong")
    return np.asarray(logits.numpy(), dtype=np.float32)


def shard_items(shape: Sequence[int]) -> int:
    """Return the number of items in a shard: 64, or down to 8 where items have many values, to save memory."""
    return max(8, min(64, MAX_SHARD_VALUES // int(np.prod(shape))))
