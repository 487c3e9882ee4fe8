"""Crafted sets: clean items, what an attack made of them, and noise of the same size, each with its provenance.

Rule 1: an item is attacked only if the model verifiably answers its final form otherwise: on the grid, in box and ball.
Rule 2: only items that the model classifies correctly are attacked: every attacked item is the attack's doing.
Rule 3: a shard is found again only by all that it follows from; an interrupted run ends as any other, bit for bit.

    images ─► correct ones ─► shards ─► attack ─► snap ─► verify ─► noise ─► .npz ─► CraftedSet
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.errors import ConfigError, DataError, ModelError
from guard.offline.attacks.attack import Attack, Model
from guard.offline.attacks.noise import moved_inside, shuffled
from guard.offline.attacks.norm_ball import into_reach, sizes
from guard.offline.attacks.objective import gap
from guard.offline.data import Split, members, on_grid, snap, snap_within, whole_steps
from guard.offline.shard import Images, Outcome, Shard, read_outcome, write_outcome

Progress = Callable[[Attack, int, int], None]  # the attack, items done, items in all

FORMAT = 1  # of a shard: raised whenever what is computed for one changes
MARGIN = (
    2e-4  # of the logits' length: what ONNX Runtime may answer otherwise (compile's parity law) fools nobody for sure
)
STRETCHES = (1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 4.0)


@dataclass(frozen=True, eq=False)
class CraftedSet:
    """One attack's verified items. Arrays run over the same items; a noisy item keeps its clean label."""

    attack: str  # as the call that makes it
    name: str
    family: str
    norm: str
    budget: float | None
    grid: int | None
    seed: int
    fingerprint: str  # of the model attacked
    tried_hashes: NDArray[np.str_]  # [tried] the correctly classified items that were attacked, with success or without
    source: NDArray[np.int64]  # [item] place in the images given
    hashes: NDArray[np.str_]  # [item] content hash of the clean item
    labels: NDArray[np.int64]  # [item] true class, and the model's answer to the clean item
    predictions: NDArray[np.int64]  # [item] the model's answer to the attacked item
    clean: Images
    attacked: Images
    noise: Images
    l2: NDArray[np.float32]  # [item] size of the perturbation
    linf: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def tried(self) -> int:
        return len(self.tried_hashes)

    @property
    def success_rate(self) -> float:
        """Verified items over items tried; NaN when none was."""
        return len(self) / self.tried if self.tried else float("nan")

    def select(self, splits: Mapping[str, Split], *wanted: Split) -> CraftedSet:
        """The items whose clean version is in one of the splits wanted. Raises DataError for an item in no split."""
        kept = members(self.hashes, splits, *wanted)
        per_item = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf")
        tried = self.tried_hashes[members(self.tried_hashes, splits, *wanted)]
        return dataclasses.replace(self, tried_hashes=tried, **{name: getattr(self, name)[kept] for name in per_item})


@dataclass(frozen=True)
class Job:
    """What all shards of a run share."""

    model: Model
    grid: int | None
    fingerprint: str
    work: Path
    seed: int
    device: torch.device


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
    shard_size: int = 128,
    device: torch.device | str = "cpu",
) -> tuple[CraftedSet, ...]:
    """Attack the unit-space `images` that `model` gets right; one set an attack, in the order given.

    `work` holds the finished shards: called again, only what is missing is computed.

    Raises:
        DataError: images, labels and hashes do not fit each other, unit space or grid, or the model gets none right.
        ModelError: the model is in training mode, or its logits are no finite [item, class].
        ConfigError: an L∞ budget below one step of the grid, or a shard without items.
    """
    names = np.asarray(hashes, dtype="<U64")
    check(model, images, labels, names, attacks, grid, shard_size)
    job = Job(model, grid, fingerprint, work, seed, torch.device(device))
    logits = np.concatenate(
        [answer(job, part) for part in np.split(images, range(shard_size, len(images), shard_size))]
    )
    if labels.max() >= logits.shape[1]:
        raise DataError(f"label {labels.max()} does not exist: the model tells {logits.shape[1]} classes apart")
    correct = np.flatnonzero(logits.argmax(axis=1) == labels)
    if len(correct) == 0:
        raise DataError(
            f"the model classifies none of {len(images)} items correctly; are labels and value range right?"
        )
    parts = np.split(correct, range(shard_size, len(correct), shard_size))
    shards = [Shard(number, part, images[part], labels[part], names[part]) for number, part in enumerate(parts)]
    return tuple(craft_one(job, attack, shards, progress) for attack in attacks)


def craft_one(job: Job, attack: Attack, shards: Sequence[Shard], progress: Progress | None) -> CraftedSet:
    total = sum(len(shard.source) for shard in shards)
    done, outcomes = 0, []
    for shard in shards:
        outcomes.append(resume(job, attack, shard))
        done += len(shard.source)
        if progress is not None:
            progress(attack, done, total)
    return collect(job, attack, shards, outcomes)


def resume(job: Job, attack: Attack, shard: Shard) -> Outcome:
    """The shard's outcome from its file, or computed and written."""
    identity = identify(job, attack, shard)
    file = job.work / f"{attack.name}-{shard.number:05d}-{identity[:24]}.npz"
    outcome = read_outcome(file)
    if outcome is None:
        outcome = attack_shard(job, attack, shard, identity)
        write_outcome(file, outcome)
    return outcome


def identify(job: Job, attack: Attack, shard: Shard) -> str:
    """SHA-256 (hex) over everything that a shard's outcome follows from."""
    digest = hashlib.sha256(repr((FORMAT, job.fingerprint, repr(attack), job.grid, job.seed, shard.number)).encode())
    digest.update(repr((shard.images.shape, shard.labels.tolist(), shard.hashes.tolist())).encode())
    digest.update(np.ascontiguousarray(shard.images, dtype="<f4").tobytes())
    return digest.hexdigest()


def attack_shard(job: Job, attack: Attack, shard: Shard, identity: str) -> Outcome:
    generator = torch.Generator().manual_seed(int(identity[:15], 16))
    clean, labels = torch.from_numpy(shard.images).to(job.device), torch.from_numpy(shard.labels).to(job.device)
    raw = attack(job.model, clean, labels, generator).cpu().numpy()
    attacked, predictions, fooled = settle(job, attack, shard, raw)
    kept = np.flatnonzero(fooled)
    noise = shuffled(torch.from_numpy(shard.images[kept]), torch.from_numpy(attacked[kept]), generator).numpy()
    return Outcome(kept, predictions[kept], attacked[kept], snap(noise, job.grid))


def settle(job: Job, attack: Attack, shard: Shard, raw: Images) -> tuple[Images, NDArray[np.int64], NDArray[np.bool_]]:
    """Final attacked items, the model's answers to them, and which of them fool it.

    An attack without a budget ends so close to the boundary that snapping takes many back over it: its perturbation is
    stretched until the snapped item fools, up to fourfold.
    """
    final, predictions = shard.images.copy(), shard.labels.copy()
    fooled = np.zeros(len(final), dtype=bool)
    for stretch in STRETCHES if attack.budget is None else (1.0,):
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


def into_place(job: Job, attack: Attack, clean: Images, points: Images) -> Images:
    """Into the box, the ball, and onto the grid."""
    if job.grid is not None:
        return snap_within(points, clean, job.grid, attack.budget, attack.norm)
    if attack.budget is None:
        return points.clip(0, 1)
    reached: Tensor = into_reach(torch.from_numpy(points), torch.from_numpy(clean), attack.budget, attack.norm)
    return np.asarray(reached.numpy(), dtype=np.float32)


def answer(job: Job, images: Images) -> NDArray[np.float32]:
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


def collect(job: Job, attack: Attack, shards: Sequence[Shard], outcomes: Sequence[Outcome]) -> CraftedSet:
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


def off_grid(images: Images, grid: int, generator: torch.Generator) -> Images:
    """Every value half a grid step up or down, inside the box: clean, but as no 8-bit file holds it."""
    clean = torch.tensor(images)
    return np.asarray(moved_inside(clean, torch.full_like(clean, 0.5 / grid), generator).numpy(), dtype=np.float32)


def check(
    model: Model,
    images: Images,
    labels: NDArray[np.int64],
    hashes: NDArray[np.str_],
    attacks: Sequence[Attack],
    grid: int | None,
    shard_size: int,
) -> None:
    """Raises as `craft` says."""
    if isinstance(model, nn.Module) and any(part.training for part in model.modules()):
        raise ModelError("the model is in training mode; call eval() first, or its answers depend on batch mates")
    if len(images) == 0 or not len(images) == len(labels) == len(hashes):
        raise DataError(
            f"{len(images)} images, {len(labels)} labels and {len(hashes)} hashes; wanted equally many, not 0"
        )
    if images.dtype != np.float32 or not bool(((images >= 0) & (images <= 1)).all()):
        raise DataError(f"images are {images.dtype} in [{images.min():g}, {images.max():g}]; wanted float32 in [0, 1]")
    if labels.dtype != np.int64 or labels.min() < 0:
        raise DataError(f"labels are {labels.dtype} from {labels.min()} on; wanted int64 class numbers from 0")
    if grid is not None and not on_grid(images, grid):
        raise DataError(f"images are not on a grid of {grid} steps; grid_of() finds the data's own")
    if shard_size < 1:
        raise ConfigError(f"shard_size = {shard_size}; wanted at least 1")
    for attack in attacks:
        small = grid is not None and attack.norm == "linf" and attack.budget is not None
        if small and whole_steps(attack.budget or 0.0, grid or 1) < 1:
            raise ConfigError(f"{attack!r}: its budget is below one step, 1/{grid}, of the data's grid")
