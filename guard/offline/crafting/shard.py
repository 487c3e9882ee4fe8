"""A shard: some items attacked in one batch, what became of them, and the file that keeps it.

Rule 1: a file is whole or it is not there; one that cannot be read counts as not there, and is made anew.
Rule 2: a shard's file is named by all that its outcome follows from, what computed it included.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.errors import ModelError
from guard.offline.attacks.attack import Attack, Model, TorchOnly
from guard.offline.attacks.layers import torch_module
from guard.offline.attacks.noise import shuffled
from guard.offline.attacks.norm_ball import into_reach
from guard.offline.attacks.objective import gap
from guard.offline.crafting.stoppable_model import StoppableModel
from guard.offline.data.grid import Images, snap, snap_within
from guard.offline.work.array_file import read_whole, write_whole
from guard.offline.work.parallel import Stop

VALUES = 2**20  # in a shard, at most, unless it has fewer than eight items


FORMAT = 2  # of a shard: raised whenever what is computed for one changes
# Of the logits' length: what ONNX Runtime may answer otherwise (the law of parity) fools nobody for sure.
MARGIN = 2e-4
STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class Shard:
    """Some correctly classified items, to be attacked in one batch."""

    number: int
    source: NDArray[np.int64]  # [tried]
    images: Images
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    group: str = ""  # of all its items: attacks learn within one

    def first(self, items: int) -> Shard:
        """Its first items alone: another shard, with another outcome."""
        kept = (self.source[:items], self.images[:items], self.labels[:items], self.hashes[:items])
        return self if items >= len(self.source) else Shard(self.number, *kept, group=self.group)


@dataclass(frozen=True, eq=False)
class ShardOutcome:
    """What became of a shard; this is what its file holds."""

    kept: NDArray[np.int64]  # [item] places within the shard of the verified items
    predictions: NDArray[np.int64]
    attacked: Images
    noise: Images


@dataclass(frozen=True)
class CraftRun:
    """What all shards of a run share."""

    model: Model
    engine: str  # what computes it: torch, or what a compiled model says
    grid: int | None
    fingerprint: str
    work: Path
    seed: int
    device: torch.device
    stop: Stop


def resume(job: CraftRun, attack: Attack, shard: Shard, *, learned: str = "", anew: bool = False) -> ShardOutcome:
    """The shard's outcome from its file, or computed and written; `anew`: computed whatever is there.

    `learned` is the digest of what the attack knows.
    """
    identity = identify(job, attack, shard, learned)
    file = job.work / f"{attack.name}-{shard.number:05d}-{identity[:24]}.npz"
    outcome = None if anew else read_outcome(file)
    if outcome is None:
        outcome = attack_shard(job, attack, shard, identity)
        write_outcome(file, outcome)
    return outcome


def identify(job: CraftRun, attack: Attack, shard: Shard, learned: str = "") -> str:
    """SHA-256 (hex) over everything that a shard's outcome follows from."""
    given = (FORMAT, job.fingerprint, job.engine, repr(attack), job.grid, job.seed, shard.number)
    digest = hashlib.sha256(repr(given).encode())
    digest.update(repr((shard.images.shape, shard.labels.tolist(), shard.hashes.tolist())).encode())
    digest.update(np.ascontiguousarray(shard.images, dtype="<f4").tobytes())
    digest.update(learned.encode())
    return digest.hexdigest()


def attack_shard(job: CraftRun, attack: Attack, shard: Shard, identity: str) -> ShardOutcome:
    generator = torch.Generator().manual_seed(int(identity[:15], 16))
    clean, labels = torch.from_numpy(shard.images).to(job.device), torch.from_numpy(shard.labels).to(job.device)
    model = torch_module(job.model, attack) if isinstance(attack, TorchOnly) else job.model
    raw = attack(StoppableModel(model, job.stop), clean, labels, generator).cpu().numpy()
    attacked, predictions, fooled = settle(job, attack, shard, raw)
    kept = np.flatnonzero(fooled)
    noise = shuffled(torch.from_numpy(shard.images[kept]), torch.from_numpy(attacked[kept]), generator).numpy()
    return ShardOutcome(kept, predictions[kept], attacked[kept], snap(noise, job.grid))


def settle(
    job: CraftRun, attack: Attack, shard: Shard, raw: Images
) -> tuple[Images, NDArray[np.int64], NDArray[np.bool_]]:
    """Final attacked items, the model's answers to them, and which of them fool it.

    An attack without a budget ends so close to the boundary that snapping takes many back over it: its perturbation is
    stretched until the snapped item fools, up to fourfold. What no norm measures is left as it is.
    """
    final, predictions = shard.images.copy(), shard.labels.copy()
    fooled = np.zeros(len(final), dtype=bool)
    for stretch in STRETCHES if attack.budget is None and attack.norm != "none" else (1.0,):
        left = np.flatnonzero(~fooled)
        if len(left) == 0:
            break
        clean = shard.images[left]
        tried = into_place(job, attack, clean, clean + np.float32(stretch) * (raw[left] - clean))
        logits = torch.from_numpy(answer(job, tried))
        ahead = gap(logits, torch.from_numpy(shard.labels[left]))
        hit = (ahead > MARGIN * torch.linalg.vector_norm(logits, dim=1)).numpy()
        final[left[hit]], predictions[left[hit]] = tried[hit], logits.argmax(dim=1).numpy()[hit]
        fooled[left[hit]] = True
    return final, predictions, fooled


def into_place(job: CraftRun, attack: Attack, clean: Images, points: Images) -> Images:
    """Into the box, the ball, and onto the grid."""
    if job.grid is not None:
        return snap_within(points, clean, job.grid, attack.budget, attack.norm)
    if attack.budget is None or attack.norm == "l0" or attack.norm == "none":
        return points.clip(0, 1)
    reached: Tensor = into_reach(torch.from_numpy(points), torch.from_numpy(clean), attack.budget, attack.norm)
    return np.asarray(reached.numpy(), dtype=np.float32)


def answer(job: CraftRun, images: Images) -> NDArray[np.float32]:
    """Logits [item, class]. Raises ModelError."""
    with torch.no_grad():
        logits = job.model(torch.tensor(images, device=job.device)).cpu()
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise ModelError(
            f"the model answers {len(images)} items with {list(logits.shape)}; wanted logits [item, class]"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError("the model's logits hold NaN or infinity; its weights or the inputs' range are wrong")
    return np.asarray(logits.numpy(), dtype=np.float32)


def read_outcome(file: Path) -> ShardOutcome | None:
    """None where there is no whole shard: it is then made anew."""
    found = read_whole(file, [field.name for field in dataclasses.fields(ShardOutcome)])
    return None if found is None else ShardOutcome(**found)


def write_outcome(file: Path, outcome: ShardOutcome) -> None:
    write_whole(file, {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)})


def shard_items(shape: Sequence[int]) -> int:
    """Items of a shard: 64, or fewer where an item has many values, so that a batch fits into a small memory."""
    return max(8, min(64, VALUES // int(np.prod(shape))))
