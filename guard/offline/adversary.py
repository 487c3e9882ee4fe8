"""The attacker who knows the guard: how much of it there is time for, its proof of strength, and its rows.

Rule 1: the row is always there. Where time is short it has fewer steps, then fewer items, never below the fewest.
Rule 2: what is attacked is the torch side; what is counted are the bundle's own verdicts.
Rule 3: a finished run is kept by all that it follows from; an interrupted evaluation does not repeat it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from guard.bundle import Bundle, file_digest
from guard.offline.attacks.adaptive import METHODS, AdaptiveResult, Known, Method, adaptive
from guard.offline.craft import CraftedSet
from guard.offline.evaluate import detect, read, some_of
from guard.offline.findings import AdaptiveRow, Promise, ProofRow, Rate
from guard.offline.labels import spoken_budget
from guard.offline.risk import DetectorExcess, Excess
from guard.offline.subject import HeldOut, Subject
from guard.offline.whole import read_whole, write_whole
from guard.runtime import Readings

FORMAT = 1  # of a kept run: raised whenever what is computed for one changes
PROOF_RATE = 0.05  # the rate at which an attack must break the detectors known to be broken
PROVING_DETECTORS = ("kernel_density", "feature_squeezing", "lid")
STARTS = 2  # of each method: the static attack's result and a random point
FEWEST_ITEMS, FEWEST_STEPS, FEW_STEPS = 30, 20, 60
TRIAL_STEPS = 2  # by which speed is measured
PARTS = 4  # that the items are attacked in


@dataclass(frozen=True)
class Size:
    """How many items are attacked, for how many steps."""

    items: int
    steps: int

    def shrunk(self, seconds: float, per_item_step: float) -> Size:
        """What fits: fewer steps down to FEW_STEPS, fewer items, then fewer steps again; never below the fewest."""
        affordable = seconds / max(per_item_step, 1e-9)
        steps = min(self.steps, max(int(affordable / self.items) - 1, min(FEW_STEPS, self.steps)))
        items = min(self.items, max(int(affordable / (steps + 1)), min(FEWEST_ITEMS, self.items)))
        steps = min(steps, max(int(affordable / items) - 1, min(FEWEST_STEPS, self.steps)))
        return Size(items, steps)


@dataclass(frozen=True)
class Aim:
    """What one run of the attack is against."""

    name: str
    known: Known
    methods: tuple[Method, ...]

    @property
    def descents(self) -> int:
        return STARTS * len(self.methods)


@dataclass(frozen=True)
class Adversary:
    """Who attacks: these clean items, which the model has right, for so many steps. Arrays are unit space."""

    images: NDArray[np.float32]  # [item, ...]
    labels: NDArray[np.int64]
    steps: int
    seed: int
    grid: int | None
    identity: str  # of the guard attacked
    work: Path

    def attack(self, aim: Aim, start: NDArray[np.float32], budget: float) -> AdaptiveResult:
        """From its file, or computed and kept."""
        file = self.work / f"{aim.name}-{self.identify(aim, start, budget)[:24]}.npz"
        found = read_result(file)
        if found is None:
            run = partial(adaptive, aim.known, budget=budget, steps=self.steps, grid=self.grid, methods=aim.methods)
            found = in_parts(run, self.images, self.labels, start, self.seed)
            write_result(file, found)
        return found

    def identify(self, aim: Aim, start: NDArray[np.float32], budget: float) -> str:
        """SHA-256 (hex) over everything that a run's result follows from."""
        settings = (FORMAT, self.identity, aim.name, aim.methods, budget, self.steps, self.seed, self.grid)
        digest = hashlib.sha256(repr((settings, self.labels.tolist(), start.shape)).encode())
        for images in (self.images, start):
            digest.update(np.ascontiguousarray(images, dtype="<f4").tobytes())
        return digest.hexdigest()


def in_parts(
    run: Callable[..., AdaptiveResult],
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    start: NDArray[np.float32] | None,
    seed: int,
) -> AdaptiveResult:
    """Items beside each other on all cores, one thread each: small convolutions gain less from sharing one.

    The number of parts is fixed, so that the result does not depend on the machine's cores.
    """

    def part(number: int) -> AdaptiveResult:
        mine = slice(number, None, PARTS)
        return run(
            torch.from_numpy(images[mine]),
            torch.from_numpy(labels[mine]),
            generator=torch.Generator().manual_seed(PARTS * seed + number),
            start=None if start is None else torch.from_numpy(start[mine]),
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(PARTS, os.cpu_count() or 1)) as pool:
            found = list(pool.map(part, range(min(PARTS, len(images)))))
    finally:
        torch.set_num_threads(threads)
    order = torch.cat([torch.arange(number, len(images), PARTS) for number in range(len(found))]).argsort()
    return AdaptiveResult(*(torch.cat([getattr(r, f.name) for r in found])[order] for f in fields(AdaptiveResult)))


def identity_of(bundle: Bundle) -> str:
    """Of what decides in a bundle: its programs, their weights and its calibration; not its report."""
    files = sorted({*(p.file for p in bundle.manifest.programs), "weights.bin", "calibration.npz"})
    return hashlib.sha256(repr([(name, file_digest(bundle.path / name)) for name in files]).encode()).hexdigest()


def read_result(file: Path) -> AdaptiveResult | None:
    """None where there is no whole result: it is then made anew."""
    found = read_whole(file, [field.name for field in fields(AdaptiveResult)])
    if found is None:
        return None
    return AdaptiveResult(**{name: torch.from_numpy(value) for name, value in found.items()})


def write_result(file: Path, result: AdaptiveResult) -> None:
    write_whole(file, {field.name: getattr(result, field.name).numpy() for field in fields(AdaptiveResult)})


def aims(subject: Subject, target: float) -> tuple[Aim, tuple[Aim, ...]]:
    """The whole guard, and each detector known to be broken that it has, alone."""
    calibration = subject.runtime.calibration
    whole = Aim("guard", Excess(subject.joint(), calibration, target), METHODS)
    alone = []
    for name in PROVING_DETECTORS:
        if name in calibration.detectors:
            clean = torch.from_numpy(calibration.clean_scores[:, calibration.detectors.index(name)])
            alone.append(Aim(name, DetectorExcess(subject.alone(name), name, clean, PROOF_RATE), METHODS))
    return whole, tuple(alone)


def seconds_per_step(aim: Aim, images: NDArray[np.float32], labels: NDArray[np.int64], budget: float) -> float:
    """Seconds that one step of one descent takes an item, measured on these items; the first steps only warm up."""
    run = partial(adaptive, aim.known, budget=budget, grid=None, methods=aim.methods[-1:])
    in_parts(partial(run, steps=0), images, labels, None, seed=0)
    began = time.perf_counter()
    in_parts(partial(run, steps=TRIAL_STEPS), images, labels, None, seed=0)
    return (time.perf_counter() - began) / (len(images) * STARTS * (TRIAL_STEPS + 1))


def target_rate(promises: Sequence[Promise], flag_rate: float) -> float:
    """The rate whose threshold is attacked: the largest that is promised."""
    return max((p.rate for p in promises if p.reason is None), default=flag_rate)


@dataclass(frozen=True)
class AdaptiveStage:
    """All runs of the adaptive attack on one guard, before any of them has begun."""

    subject: Subject
    held_out: HeldOut
    budgets: tuple[float, ...]
    promises: tuple[Promise, ...]
    wanted: Size
    seed: int
    work: Path

    @property
    def target(self) -> float:
        return target_rate(self.promises, self.subject.runtime.bundle.manifest.flag_rate)

    def right(self, clean: Readings, size: Size) -> NDArray[np.int64]:
        """The first items that the model has right."""
        return np.flatnonzero(clean.prediction == self.held_out.labels)[: size.items]

    def descents(self) -> int:
        """Of all runs together."""
        whole, alone = aims(self.subject, self.target)
        return whole.descents * len(self.budgets) + sum(aim.descents for aim in alone)

    def per_item_step(self, clean: Readings) -> float:
        """Seconds that one step of every descent takes an item."""
        whole, alone = aims(self.subject, self.target)
        index = self.right(clean, self.wanted)
        images, labels = self.held_out.images[index], self.held_out.labels[index]
        largest = max(self.budgets)
        whole_s = seconds_per_step(whole, images, labels, largest) * whole.descents * len(self.budgets)
        return whole_s + sum(seconds_per_step(aim, images, labels, largest) * aim.descents for aim in alone)

    def sized(self, clean: Readings, seconds: Callable[[], float] | None, say: Callable[[str], None]) -> Size:
        """The size that fits into the seconds left; one chosen before for the same question is kept to."""
        if seconds is None:
            return self.wanted
        file = self.work / f"size-{self.question()[:24]}.json"
        try:
            return Size(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            per = self.per_item_step(clean)
        size = self.wanted.shrunk(seconds(), per)
        say(
            f"adaptive attack: {self.descents() / per:.0f} guarded steps/s, so {size.items} items x {size.steps} steps "
            f"x {self.descents()} descents, about {duration(per * size.items * (size.steps + 1))}"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(size)), encoding="utf-8")
        return size

    def question(self) -> str:
        hashes = hashlib.sha256("".join(self.held_out.hashes.tolist()).encode()).hexdigest()
        settings = (FORMAT, identity_of(self.subject.runtime.bundle), hashes, self.budgets, self.target, self.seed)
        return hashlib.sha256(repr((settings, self.wanted)).encode()).hexdigest()

    def rows(
        self, clean: Readings, crafted: Sequence[CraftedSet], size: Size, note: Callable[[str], None]
    ) -> tuple[AdaptiveRow, ...]:
        """One row a budget, on the first items that the model has right; the proof is at the largest budget."""
        runtime, held_out = self.subject.runtime, self.held_out
        index = self.right(clean, size)
        images, labels = held_out.images[index], held_out.labels[index]
        identity = identity_of(runtime.bundle)
        adversary = Adversary(images, labels, size.steps, self.seed, runtime.spec.grid, identity, self.work)
        starts = {budget: static_start(held_out, index, crafted, budget) for budget in self.budgets}
        whole, alone = aims(self.subject, self.target)
        largest = max(self.budgets)
        proof = []
        for aim in alone:
            note(f"proof of strength: {aim.name}")
            found = adversary.attack(aim, starts[largest], largest)
            proof.append(ProofRow(aim.name, largest, Rate.of(found.success.numpy())))
        rows = []
        for budget, start in starts.items():
            note(f"adaptive attack at {spoken_budget(budget, runtime.spec.grid)}")
            found = adversary.attack(whole, start, budget)
            rows.append(self.row(found, labels, clean, budget, size, tuple(proof)))
        return tuple(rows)

    def row(
        self,
        found: AdaptiveResult,
        labels: NDArray[np.int64],
        clean: Readings,
        budget: float,
        size: Size,
        proof: tuple[ProofRow, ...],
    ) -> AdaptiveRow:
        manifest = self.subject.runtime.bundle.manifest
        readings = read(self.subject.runtime, found.images.numpy())
        fooled, p_value = readings.prediction != labels, readings.p_value
        missed = np.where(fooled, p_value, -1.0)  # of what does not fool the model nothing is missed
        passed = {p.name: Rate.of(missed > p.rate) if p.reason is None else None for p in self.promises}
        return AdaptiveRow(
            budget=budget,
            label=f"adaptive L∞ {spoken_budget(budget, self.subject.runtime.spec.grid)}",
            steps=size.steps,
            methods=METHODS,
            target=self.target,
            fooled=Rate.of(fooled),
            detection=detect(
                self.subject.runtime.calibration, some_of(readings, fooled), p_value, fooled, clean, self.promises
            ),
            passed=passed,
            passed_reject=Rate.of(missed > manifest.reject_rate),
            passed_flag=Rate.of(missed > manifest.flag_rate),
            disagreement=float(((missed > self.target) != found.success.numpy()).mean()),
            proof=proof,
        )


def static_start(
    held_out: HeldOut, index: NDArray[np.int64], crafted: Sequence[CraftedSet], budget: float
) -> NDArray[np.float32]:
    """For each item the static L-infinity attack's result within the budget, or the clean item where there is none."""
    start = held_out.images[index].copy()
    for found in crafted:
        if found.norm == "linf" and found.budget is not None and found.budget <= budget + 1e-9:
            places: Mapping[str, int] = {value: place for place, value in enumerate(found.hashes.tolist())}
            for row, item in enumerate(index):
                if (place := places.get(str(held_out.hashes[item]))) is not None:
                    start[row] = found.attacked[place]
    return start


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
