"""For maintainers: how long a whole report takes on 1 to 1,000 workers, and what stops it from becoming faster.

    python -m tests.bench.cluster                      images of 3 x 224 x 224; measures some minutes, then simulates
    python -m tests.bench.cluster --quick              3 x 32 x 32, two attacks
    python -m tests.bench.cluster --model model.onnx   your own network (.onnx, .pt2) instead of a small one

Every kind of task is measured here, by the guard's own code on one thread, in its processor time: shards of attacks of
preset `standard`, what attacks learn first, a reading, a step of the adaptive attack, fitting. Attacks are timed on
small images, and scaled by what a forward and a backward take more on the large ones: an attack is little else. The
simulation (`tests/bench/simulation.py`) then lays the report's tasks out on a cluster; rows are medians of nine runs.
Beside it stand two runs that were really made: the measured shards once more, by the guard's own pool with one worker
and with two. (`tests.bench.scale` is another benchmark: more pictures than memory holds.)

What is assumed, since no cluster is here, is an option: how long a worker takes to start, how often one is lost, how
many tasks straggle and by how much, the driver's link and how long it handles a result, and on which share of the items
an attack succeeds, since the network's weights are random. Second networks are brought (`--second`), not trained.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from guard.offline.adversary.descent import ALL_METHODS, descents_of
from guard.offline.adversary.runs import ITEM_PARTS, START_POINTS
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import Crafter
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.data.splits import content_hashes
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.job.recipe import Recipe, load_recipe
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from guard.offline.programs.program import Program
from guard.offline.training.fit_heads import FittingItems, fit_heads, settled
from guard.offline.work.parallel import one_thread
from guard.offline.work.store import ResultStore
from tests.bench.networks import item_shape, random_images
from tests.bench.sidecar import table
from tests.bench.simulation import Cluster, Outcome, Stage, simulate

GRID = 255
SHARD_ITEMS = 8  # which `shard_items` gives for images of 3 x 224 x 224
WORKERS = (1, 2, 4, 10, 30, 100, 300, 1000)
WANTED_ITEMS, REPORT_ITEMS = 1000, 300  # verified to fit on, and tried for the report, each attack
ADAPTIVE_ITEMS, ADAPTIVE_STEPS = 500, 100
CLEAN_ITEMS, READ_ITEMS = 10_000, 64  # read for ranks and rows; of a task
NOISE_COPIES = 3  # of each item that is fitted on: of the attacks' sizes, and harmless
FLOAT_BYTES = 4
READINGS = "readings"
RUNS = 9  # of the simulation, each with other stragglers and losses
GAINED_SHARE = 0.1  # by which three times as many workers must at least shorten a run that still scales


@dataclass(frozen=True)
class Size:
    """What is measured."""

    side: int
    attack_side: int  # of the images on which attacks are timed
    fitted: int  # random images that heads are fitted on
    attacks: tuple[str, ...] = ()  # none: those of the recipe


FULL, QUICK = Size(224, 32, 24), Size(32, 32, 24, ("fgsm", "uap"))


@dataclass(frozen=True)
class Measured:
    """Seconds of each kind of task on one thread, as they were measured."""

    shard_s: dict[str, tuple[float, ...]]  # by attack: of one shard each
    learn_s: dict[str, float]  # by attack that learns first: for one block
    factor: float  # by which both take longer on the large images
    read_item_s: float
    step_item_s: float  # of the adaptive attack: forward and backward through the program
    fit_item_s: float
    shard_bytes: float  # of a shard's result
    item_bytes: float
    pool_s: dict[int, tuple[float, float]]  # by workers: wall and processor time of the shards by the guard's own pool
    families: int
    budgets: int


def timed(call: Callable[[], object]) -> float:
    """Processor time of a call on this thread: what it takes on a core of its own."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


def pooled(crafter: Crafter, attacks: Sequence[Attack], workers: int) -> tuple[float, float]:
    """Wall and processor time of the same shards by the guard's own pool."""
    pool = replace(crafter, run=replace(crafter.run, workers=workers))
    wall, processor = time.perf_counter(), time.process_time()
    pool.attacked(attacks, anew=True)
    return time.perf_counter() - wall, time.process_time() - processor


@dataclass(frozen=True)
class Subject:
    """A network with random images that it has right, whose tasks are measured."""

    classifier: Classifier
    items: Dataset
    recipe: Recipe

    @staticmethod
    def open(model: str | None, side: int, items: int) -> Subject:
        shape = (3, side, side) if model is None else item_shape(model)
        classifier = open_model(Source(model or "tests.networks:mobilenet", shape, serves="model", grid=GRID))
        recipe = load_recipe("standard").fitting(classifier.kind, [tap.name for tap in classifier.taps], classifier)
        images = random_images(items, shape, seed=0)
        with torch.no_grad():
            labels = classifier(torch.from_numpy(images)).argmax(dim=1).numpy()
        return Subject(classifier, Dataset(images, labels, content_hashes(images)), recipe)

    def pass_s(self) -> float:
        """Seconds of a forward and a backward of one item."""
        batch = torch.from_numpy(self.items.images[:SHARD_ITEMS])

        def step() -> None:
            inputs = batch.clone().requires_grad_()
            self.classifier.graph(inputs).sum().backward()

        step()
        return timed(step) / len(batch)


def measure(model: str | None, size: Size, folder: Path) -> Measured:
    """Measure every kind of task on this machine."""
    subject = Subject.open(model, size.side, size.fitted)
    small = subject if model is not None else Subject.open(None, size.attack_side, SHARD_ITEMS)
    classifier, recipe = small.classifier, small.recipe
    setup = CraftSetup(
        TorchModel(classifier.graph),
        grid_for(classifier.spec.input),
        classifier.spec.fingerprint,
        ResultStore(folder / "crafted"),
        seed=0,
        shard_items=SHARD_ITEMS,
        workers=1,
    )
    crafter = Crafter.open(setup, small.items.take(slice(SHARD_ITEMS)))
    attacks = [one for one in recipe.attacks if not size.attacks or one.name in size.attacks]
    with one_thread():
        factor = subject.pass_s() / small.pass_s() if small is not subject else 1.0
        shard_s, learn_s = crafted(crafter, attacks)
        program_s, step_s, fit_s = program_times(subject.classifier, subject.recipe, subject.items)
    pixels = math.prod(subject.items.item_shape)
    return Measured(
        shard_s,
        learn_s,
        factor,
        program_s,
        step_s,
        fit_s,
        2 * SHARD_ITEMS * pixels,  # a byte a value: attacked items and noise of their size, on the grid of 8 bits
        FLOAT_BYTES * pixels,
        {workers: pooled(crafter, attacks, workers) for workers in (1, 2)},
        len({attack.family for attack in recipe.attacks}),
        len(recipe.adaptive_budgets),
    )


def crafted(crafter: Crafter, attacks: Sequence[Attack]) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """The seconds of each attack's shard and of its learning."""
    shard_s, learn_s = {}, {}
    for attack in attacks:
        if learns(attack):
            learn_s[repr(attack)] = timed(partial(crafter.learn, attack, anew=True))
        once = partial(crafter.attacked, [attack], anew=True)
        once()  # what is done once, such as choosing kernels, is done now
        shard_s[repr(attack)] = (timed(once),)
    return shard_s, learn_s


def program_times(classifier: Classifier, recipe: Recipe, items: Dataset) -> tuple[float, float, float]:
    """The seconds an item that a reading takes, a step of the adaptive attack, and fitting."""
    (name, asked), *_ = recipe.programs([tap.name for tap in classifier.taps]).items()
    attacked = random_images(len(items), items.item_shape, seed=1)
    fitting = FittingItems(items, items.images[:0], Attacked(attacked, ("random",) * len(items)))
    found: list[Program] = []

    def fit() -> None:
        heads = fit_heads(asked, fitting, EvidenceCache(classifier), seed=0, report=lambda _: None)
        found.append(Program(classifier, [heads[one.name] for one in settled({name: asked}, heads)[name]]))

    fit_s = timed(fit) / (2 * len(items))
    (program,) = found
    batch = torch.from_numpy(items.images[:8])

    def step() -> None:
        inputs = batch.clone().requires_grad_()
        logits, scores, *_ = program(inputs)
        (logits.sum() + scores.sum()).backward()

    with torch.no_grad():
        program(batch)
        read_s = timed(lambda: program(batch)) / len(batch)
    step()
    return read_s, timed(step) / len(batch), fit_s


def report_stages(measured: Measured, *, success: float) -> list[Stage]:
    """The tasks of a whole training and report, stage by stage."""
    mean = {attack: float(np.mean(found)) for attack, found in measured.shard_s.items()}

    def shards(items: float) -> tuple[float, ...]:
        count = math.ceil(items / SHARD_ITEMS)
        every = measured.shard_s.values()
        return tuple(measured.factor * found[number % len(found)] for found in every for number in range(count))

    learned = tuple(measured.factor * seconds for seconds in measured.learn_s.values())
    fitted_items = (1 + NOISE_COPIES) * WANTED_ITEMS * len(mean)
    fits = (fitted_items * measured.fit_item_s,) * (1 + measured.families)
    part_items = ADAPTIVE_ITEMS / ITEM_PARTS
    parts = tuple(
        part_items * START_POINTS * descents_of(method) * ADAPTIVE_STEPS * measured.step_item_s
        for method in ALL_METHODS
        for _ in range(measured.budgets * ITEM_PARTS)
    )
    readings = CLEAN_ITEMS + 2 * REPORT_ITEMS * len(mean) * (1 + measured.families)
    read = (READ_ITEMS * measured.read_item_s,) * math.ceil(readings / READ_ITEMS)
    result = measured.item_bytes * part_items
    return [
        Stage("attacks learn (heads, combiner)", 2 * learned, measured.item_bytes),
        Stage("attacks to fit on", shards(WANTED_ITEMS / success), measured.shard_bytes),
        Stage("fits, one a family left out", fits, measured.item_bytes),
        Stage("attacks learn (report)", learned, measured.item_bytes),
        Stage("attacks of the report", shards(REPORT_ITEMS), measured.shard_bytes),
        Stage(READINGS, read, READ_ITEMS * 100 * FLOAT_BYTES),
        Stage("adaptive attack, --full", parts, result),
    ]


def stage_rows(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """A row for each stage: its tasks, its work, its longest task, and how many workers it can keep busy."""
    return [
        (
            one.name,
            f"{len(one.seconds):,}",
            f"{one.work_s / 3600:.2f} h",
            f"{one.longest_s:.1f} s",
            f"{one.work_s / one.longest_s:.0f}" if one.longest_s else "0",
            f"{len(one.seconds) * one.result_bytes / 2**20:,.0f} MiB",
        )
        for one in stages
    ]


def bound(stages: Sequence[Stage], cluster: Cluster, outcome: Outcome) -> str:
    """What a run's time comes from most: the work, the driver, or a stage that its longest tasks hold up."""
    ideal = {one.name: one.work_s / cluster.workers for one in stages}
    if sum(ideal.values()) > outcome.seconds / 2:
        return "the work itself"
    if outcome.driver_s > outcome.seconds / 2:
        return "the driver"
    return f"the longest tasks: {max(ideal, key=lambda name: outcome.stage_s[name] - ideal[name])}"


def runs(stages: Sequence[Stage], cluster: Cluster) -> list[Outcome]:
    """Some runs of the same tasks, the quickest first: which tasks straggle and which workers are lost differs."""
    return sorted((simulate(stages, cluster, seed=seed) for seed in range(RUNS)), key=lambda one: one.seconds)


def cluster_rows(
    stages: Sequence[Stage], cluster: Cluster, price: float | None
) -> tuple[list[tuple[str, ...]], list[float]]:
    """A row for each number of workers, and the seconds of each."""
    rows, seconds = [], []
    for workers in WORKERS:
        own = replace(cluster, workers=workers)
        found = runs(stages, own)
        middle = found[len(found) // 2]
        seconds.append(middle.seconds)
        held = middle.held_s(workers)
        cost = (f"{held / 3600 * price:.2f}",) if price is not None else ()
        rows.append(
            (
                f"{workers:,}",
                f"{middle.seconds / 3600:.2f} h",
                f"{found[-1].seconds / 3600:.2f} h",
                f"{seconds[0] / middle.seconds:.1f}",
                f"{held / 3600:.1f}",
                f"{middle.busy_s / held:.0%}",
                str(middle.losses),
                f"{middle.moved_bytes / 2**30:.2f} GiB",
                *cost,
                bound(stages, own, middle),
            )
        )
    return rows, seconds


def stops_at(seconds: Sequence[float]) -> int:
    """The fewest workers beyond which three times as many take hardly less."""
    for workers, here, further in zip(WORKERS, seconds, seconds[1:], strict=False):
        if further > (1 - GAINED_SHARE) * here:
            return workers
    return WORKERS[-1]


def pool_rows(measured: Measured) -> list[tuple[str, ...]]:
    """The measured shards by the guard's own pool, beside the simulation of the same tasks."""
    tasks = Stage("shards", tuple(seconds for found in measured.shard_s.values() for seconds in found))
    rows = []
    for workers, (wall, processor) in measured.pool_s.items():
        expected = simulate([tasks], Cluster(workers)).seconds
        share = processor / workers
        rows.append((str(workers), f"{wall:.2f} s", f"{share:.2f} s", f"{expected:.2f} s", f"{share / expected:.2f}"))
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", help=".onnx or .pt2; a small network of tests/networks.py unless given")
    parser.add_argument("--success", type=float, default=0.7, help="share of the items that an attack fools, assumed")
    parser.add_argument("--start-s", type=float, default=60.0, help="until a worker is there, assumed")
    parser.add_argument("--lost-per-day", type=float, default=0.1, help="losses of one worker a day, assumed")
    parser.add_argument("--stragglers", type=float, nargs=2, default=(0.02, 3.0), metavar=("SHARE", "FACTOR"))
    parser.add_argument("--megabytes-per-s", type=float, default=500.0, help="of the driver's link, assumed")
    parser.add_argument("--handling-ms", type=float, default=2.0, help="of the driver for each result, assumed")
    parser.add_argument("--price", type=float, help="of a core for an hour; a column with the cost of each row")
    return parser.parse_args()


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options.model, QUICK if options.quick else FULL, Path(folder))
    cluster = Cluster(
        1,
        start_s=options.start_s,
        losses_per_hour=options.lost_per_day / 24,
        straggler_share=options.stragglers[0],
        straggler_factor=options.stragglers[1],
        bytes_per_s=options.megabytes_per_s * 1e6,
        handling_s=options.handling_ms / 1000,
    )
    stages = report_stages(measured, success=options.success)
    print_measured(measured)
    given = {name: value for name, value in vars(options).items() if name not in ("quick", "model", "price")}
    print("\nassumed: " + ", ".join(f"{name} {value}" for name, value in given.items()) + "\n")
    print(table(["stage", "tasks", "work", "longest task", "workers it can use", "results"], stage_rows(stages)))
    rows, seconds = cluster_rows(stages, cluster, options.price)
    names = ["workers", "takes", "at worst", "times as fast", "core hours", "busy", "lost", "moved"]
    print("\n" + table([*names, *(["cost"] if options.price is not None else []), "bound by"], rows))
    kept = sum(len(one.seconds) * one.result_bytes for one in stages if one.name != READINGS)
    print(f"\nbeyond {stops_at(seconds)} workers hardly faster; a model's work directory holds {kept / 2**30:.2f} GiB")
    return 0


def print_measured(measured: Measured) -> None:
    """Print what was measured, and what the guard's own pool makes of the same tasks."""
    print(f"measured on {os.cpu_count()} cores, one thread a task, shards of {SHARD_ITEMS} items:\n")
    rows = [
        (short(attack), f"{np.mean(found):.3g} s", f"{measured.factor * np.mean(found):.3g} s")
        for attack, found in measured.shard_s.items()
    ]
    print(table(["attack", "a shard of small images", "of the large ones"], rows))
    print(
        f"\nreading {measured.read_item_s * 1e3:.1f} ms an item, adaptive step {measured.step_item_s * 1e3:.1f} ms, "
        f"fitting {measured.fit_item_s * 1e3:.1f} ms; "
        f"a forward and a backward take {measured.factor:.3g} times as long as where attacks were timed\n"
    )
    headings = ["workers", "by the guard's own pool", "its processor time a worker", "simulated", "ratio"]
    print(table(headings, pool_rows(measured)))


def short(attack: str) -> str:
    return attack if len(attack) <= 60 else f"{attack[:57]}..."


if __name__ == "__main__":
    sys.exit(main())
