"""A shard: some items attacked in one batch, what became of them, and the file that keeps it.

Rule 1: a file is whole or it is not there; one that cannot be read counts as not there, and is made anew.
Rule 2: a shard's file is named by all that its outcome follows from, what computed it included.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ModelError
from guard.offline.attacks.attack import Attack, Model
from guard.offline.attacks.layers import torch_module
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import into_reach
from guard.offline.attacks.objective import gap
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import Images, snap, snap_within
from guard.offline.work.parallel import Stop, cores
from guard.offline.work.store import ResultStore, cache_key

VALUES = 2**20  # in a shard, at most, unless it has fewer than eight items


SALT = 2  # of an attack's randomness: another number is another draw
# What a shard's outcome follows from, beside the attack itself: how it is crafted, and what answers for the model.
CODE = (__name__, "guard.offline.crafting.onnx_model", "guard.offline.model.open_model")
# Of the logits' length: what ONNX Runtime may answer otherwise (the law of parity) fools nobody for sure.
MARGIN = 2e-4
STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class Shard:
    """Some correctly classified items, to be attacked in one batch."""

    number: int
    source: NDArray[np.int64]  # [tried] places in the data given
    items: Dataset
    group: str = ""  # of all its items: attacks learn within one

    def __len__(self) -> int:
        return len(self.items)

    def first(self, items: int) -> Shard:
        """Its first items alone: another shard, with another outcome."""
        part = slice(items)
        return self if items >= len(self) else Shard(self.number, self.source[part], self.items.take(part), self.group)


@dataclass(frozen=True, eq=False)
class ShardOutcome:
    """What became of a shard; this is what its file holds."""

    kept: NDArray[np.int64]  # [item] places within the shard of the verified items
    predictions: NDArray[np.int64]
    attacked: Images
    noise: Images


@dataclass(frozen=True)
class CraftRun:
    """Everything but the items and the attacks that a run of crafting follows from, and how it is carried out."""

    model: Model
    grid: int | None  # steps of the items' grid
    fingerprint: str  # of the model
    work: ResultStore  # of finished shards: called again, only what is missing is computed
    seed: int
    shard_items: int | None = None  # None: as many as fit into a small memory
    workers: int | None = None  # threads that attack side by side, which changes no bit; None: one a core
    device: torch.device | str = "cpu"
    stop: Stop = field(default_factory=Stop)

    @property
    def engine(self) -> str:
        """What computes the model: torch, or what a compiled model says."""
        return str(getattr(self.model, "engine", "torch"))

    @property
    def threads(self) -> int:
        """The number of workers."""
        return cores() if self.workers is None else self.workers

    def begun(self) -> CraftRun:
        """The same run, which nobody has stopped."""
        return replace(self, stop=Stop())


def resume(run: CraftRun, attack: Attack, shard: Shard, *, learned: str = "", anew: bool = False) -> ShardOutcome:
    """The shard's outcome from its file, or computed and kept; `anew`: computed whatever is there.

    `learned` is the digest of what the attack knows.
    """
    identity = identify(run, attack, shard, learned)

    def make() -> dict[str, NDArray[Any]]:
        return vars(attack_shard(run, attack, shard, identity))

    name, key = f"{attack.name}-{shard.number:05d}", cache_key(identity, (*CODE, *modules_of(attack)))
    names = [field.name for field in dataclasses.fields(ShardOutcome)]
    return ShardOutcome(**run.work.arrays(name, key, make, names=names, anew=anew))


def modules_of(attack: Any) -> list[str]:
    """Where the code of an attack lies, and the code of an attack that it is made of."""
    settings = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    parts = [getattr(attack, setting.name) for setting in settings]
    inner = [part for part in parts if dataclasses.is_dataclass(part) and not isinstance(part, type)]
    return [type(attack).__module__, *(module for part in inner for module in modules_of(part))]


def identify(run: CraftRun, attack: Attack, shard: Shard, learned: str = "") -> str:
    """SHA-256 (hex) over all that an outcome follows from, but for the code; it seeds the attack's randomness."""
    items = shard.items
    given = (SALT, run.fingerprint, run.engine, repr(attack), run.grid, run.seed, shard.number)
    digest = hashlib.sha256(repr(given).encode())
    digest.update(repr((items.images.shape, items.labels.tolist(), items.hashes.tolist())).encode())
    digest.update(np.ascontiguousarray(items.images, dtype="<f4").tobytes())
    digest.update(learned.encode())
    return digest.hexdigest()


def attack_shard(run: CraftRun, attack: Attack, shard: Shard, identity: str) -> ShardOutcome:
    generator = torch.Generator().manual_seed(int(identity[:15], 16))
    items = shard.items
    clean, labels = torch.from_numpy(items.images).to(run.device), torch.from_numpy(items.labels).to(run.device)
    model = torch_module(run.model, attack) if attack.traits.asks == "curvature" else run.model
    raw = attack(StoppableModel(model, run.stop), clean, labels, generator).cpu().numpy()
    attacked, predictions, fooled = settle(run, attack, shard, raw)
    kept = np.flatnonzero(fooled)
    noise = shuffled(torch.from_numpy(items.images[kept]), torch.from_numpy(attacked[kept]), generator).numpy()
    return ShardOutcome(kept, predictions[kept], attacked[kept], snap(noise, run.grid))


def settle(
    run: CraftRun, attack: Attack, shard: Shard, raw: Images
) -> tuple[Images, NDArray[np.int64], NDArray[np.bool_]]:
    """Final attacked items, the model's answers to them, and which of them fool it.

    An attack without a budget ends so close to the boundary that snapping takes many back over it: its perturbation is
    stretched until the snapped item fools, up to fourfold. What no norm measures is left as it is.
    """
    items = shard.items
    final, predictions = items.images.copy(), items.labels.copy()
    fooled = np.zeros(len(final), dtype=bool)
    for stretch in STRETCHES if attack.budget is None and attack.norm != "none" else (1.0,):
        left = np.flatnonzero(~fooled)
        if len(left) == 0:
            break
        clean = items.images[left]
        tried = into_place(run, attack, clean, clean + np.float32(stretch) * (raw[left] - clean))
        logits = torch.from_numpy(answer(run, tried))
        ahead = gap(logits, torch.from_numpy(items.labels[left]))
        hit = (ahead > MARGIN * torch.linalg.vector_norm(logits, dim=1)).numpy()
        final[left[hit]], predictions[left[hit]] = tried[hit], logits.argmax(dim=1).numpy()[hit]
        fooled[left[hit]] = True
    return final, predictions, fooled


def into_place(run: CraftRun, attack: Attack, clean: Images, points: Images) -> Images:
    """Into the box, the ball, and onto the grid."""
    if run.grid is not None:
        return snap_within(points, clean, run.grid, attack.budget, attack.norm)
    if attack.budget is None or attack.norm == "l0" or attack.norm == "none":
        return points.clip(0, 1)
    reached: Tensor = into_reach(torch.from_numpy(points), torch.from_numpy(clean), attack.budget, attack.norm)
    return np.asarray(reached.numpy(), dtype=np.float32)


def answer(run: CraftRun, images: Images) -> NDArray[np.float32]:
    """Logits [item, class]. Raises ModelError."""
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
    """Items of a shard: 64, or fewer where an item has many values, so that a batch fits into a small memory."""
    return max(8, min(64, VALUES // int(np.prod(shape))))
