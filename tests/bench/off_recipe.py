"""For maintainers: what a guard catches of attacks with other settings than its recipe's, one row a cell, worst first.

    python -m tests.side attacks                                      foolbox, once
    python -m tests.bench.off_recipe BUNDLE --data TEST.npz [--items 200] [--threads N] [--work DIR]
    python -m tests.bench.off_recipe BUNDLE --data TEST.npz --cells FILE.toml
    python -m tests.bench.off_recipe --quick

foolbox attacks the bare model, whose file and weights BUNDLE.work knows; the guard is only asked afterwards. An item
counts once its final form, on the data's grid and within box and ball, verifiably changes the model's answer; more
items are tried until so many count, as far as the data reach. Whoever holds TEST back from training measures what was
never seen: items that the bundle knows are put aside. What is crafted lies in DIR and is taken up again.

"PGD L∞ 6/255, 25 small" takes 25 steps of budget / 25; without a word a step is 2.5 times as long, a large one ten
times. Of a budget whole steps of the grid are left: 1.5/255 is attacked as that, and then cut to one. FILE holds
[[attack]] blocks as a recipe does; beside the guard's own attacks, `name = "foolbox.DDNAttack"` names a class of
foolbox.attacks, and the block its settings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column
from rich.text import Text

from guard.bundle import Bundle
from guard.errors import ConfigError, GuardError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.feature_model import as_allowed
from guard.offline.attacks.model import Model, TorchModel
from guard.offline.attacks.ranges import smallest
from guard.offline.crafting import engine
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter, Progress
from guard.offline.crafting.engine import choose_engine, compiled_model
from guard.offline.crafting.learning import BLOCK_SHARDS
from guard.offline.crafting.plan import more
from guard.offline.crafting.shard import CraftSetup, shard_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.evaluation.forecast import PROBED_ITEMS, passes, speed
from guard.offline.findings.attack_names import SYMBOLS, range_text
from guard.offline.findings.intervals import Caught, Promise, caught_at
from guard.offline.job.recipe import attacks_of, tables
from guard.offline.job.toml_files import content_of, users_text
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.report.wording import promise_text, rate_text
from guard.offline.train import train
from guard.offline.training.reopen import Work
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.progress import Stage, Stages
from guard.offline.work.store import cache_key
from guard.offline.work.tables import counts, new_table, plain_lines, shares
from guard.offline.work.text import duration
from tests.bench.foolbox_attack import PREFIX, FoolboxAttack
from tests.side import StaleError

RATES = (0.01, 0.05)
AIMS: Mapping[float, float] = {0.01: 0.60, 0.05: 0.85}  # the share to be caught at each rate, from these sizes on
AIMED_SIZES: Mapping[str, float] = {"linf": 3 / 255, "l2": 0.3}
LEVELS = (1, 1.5, 3, 4, 6, 12, 16)  # L-infinity budgets, of 255
L2_BUDGETS = (0.25, 0.4, 0.75)
STEPS = (5, 10, 25, 100)
STEP_FACTORS = {"small": 1.0, "steps": 2.5, "large": 10.0}  # of budget / steps
OPTIMISERS = {
    "PGD": ("LinfPGD", "L2PGD"),
    "Adam": ("LinfAdamPGD", "L2AdamPGD"),
    "momentum": ("LinfMomentumIterativeFastGradientMethod", "L2MomentumIterativeFastGradientMethod"),
}
ONE_STEP_LEVELS = (3, 6, 12)  # of 255
SMALLEST: Mapping[str, Mapping[str, Any]] = {  # attacks that look for the smallest perturbation
    "DDN, 25 steps": {"name": "DDNAttack", "steps": 25},
    "DDN, 100 steps": {"name": "DDNAttack", "steps": 100},
    "FMN L2, 100 steps": {"name": "L2FMNAttack", "steps": 100},
    "FMN L2, 100 steps from 0.1 on": {"name": "L2FMNAttack", "steps": 100, "max_stepsize": 0.1},
    "FMN L∞, 100 steps": {"name": "LInfFMNAttack", "steps": 100},
    "FMN L1, 100 steps": {"name": "L1FMNAttack", "steps": 100},
    "NewtonFool, 25 steps": {"name": "NewtonFoolAttack", "steps": 25},
    "NewtonFool, 100 steps": {"name": "NewtonFoolAttack", "steps": 100},
    "EAD, elastic net": {"name": "EADAttack", "binary_search_steps": 4, "steps": 50, "initial_const": 0.1},
    "EAD, L1": {
        "name": "EADAttack",
        "binary_search_steps": 4,
        "steps": 50,
        "initial_const": 0.1,
        "decision_rule": "L1",
    },
}
FINE_GRID = 255
# On fewer grey levels budgets are this many times as large: preset `digits` has 2/16 and 1.5 for 8/255 and 0.5.
COARSE_FACTORS = {"linf": 4 * 255 / 256, "l2": 3.0}
QUICK_ITEMS, QUICK_CLEAN_ITEMS, QUICK_CELLS = 40, 200, 12  # cells: every twelfth
SEED = 0


@dataclass(frozen=True)
class Scale:
    """How large budgets are on the data's grid: as they are written on 255 steps, larger on fewer."""

    grid: int | None

    def factor(self, norm: str) -> float:
        return COARSE_FACTORS.get(norm, 1.0) if self.grid is not None and self.grid < FINE_GRID else 1.0

    def linf(self, level: float) -> float:
        """An L-infinity budget of so many of 255 levels; a whole step of a coarse grid at least."""
        return max(self.factor("linf") * level / FINE_GRID, 1 / (self.grid or FINE_GRID))

    def linf_text(self, level: float) -> str:
        return f"{self.linf(level) * (self.grid or FINE_GRID):.3g}/{self.grid or FINE_GRID}"

    def aimed(self, attack: Attack) -> bool:
        """Whether the aims hold for an attack: its budget is large enough, whatever an item draws of it."""
        budget, least = smallest(attack.budget), AIMED_SIZES.get(attack.norm)
        return budget is not None and least is not None and budget >= least * self.factor(attack.norm) - 1e-9


@dataclass(frozen=True)
class Cell:
    """A row of the table before it is measured: an attack, in words."""

    words: str
    attack: Attack


def usual_cells(scale: Scale) -> list[Cell]:
    """The cells that the table has unless a file names others: every budget meets every number and size of steps."""
    found: dict[str, Cell] = {}
    budgets = [
        *(("L∞", 0, scale.linf_text(level), scale.linf(level)) for level in LEVELS),
        *(("L2", 1, f"{(size := l2 * scale.factor('l2')):g}", size) for l2 in L2_BUDGETS),
    ]
    for place, (symbol, column, text, budget) in enumerate(budgets):
        for (number, steps), (size, (step, factor)) in product(enumerate(STEPS), enumerate(STEP_FACTORS.items())):
            if (place + number + size) % 2:
                continue  # half of them: six for each budget
            optimiser = list(OPTIMISERS)[(place + number + 2 * size) % len(OPTIMISERS)]
            settings = (("steps", steps), ("abs_stepsize", factor * budget / steps))
            words = f"{optimiser} {symbol} {text}, {steps} {step}"
            found[words] = Cell(words, FoolboxAttack(OPTIMISERS[optimiser][column], budget, settings))
    for level in ONE_STEP_LEVELS:
        words = f"FGSM L∞ {scale.linf_text(level)}"
        found[words] = Cell(words, FoolboxAttack("LinfFastGradientAttack", scale.linf(level)))
    found |= {words: Cell(words, FoolboxAttack.of(block)) for words, block in SMALLEST.items()}
    return list(found.values())


def cells_in(file: Path, grid: int | None) -> list[Cell]:
    """The cells that a file names. Raises ConfigError as a recipe does."""
    raw = content_of("cells", str(file), users_text("cells", file))
    if unknown := set(raw) - {"attack", "description"}:
        raise ConfigError(f"cells {file}: unknown key {min(unknown)!r}; known: attack, description")
    blocks = tables(raw, "attack", str(file))
    if not blocks:
        raise ConfigError(f"cells {file} lists no [[attack]]; at least one is needed")
    return [Cell(words_of(block, attack, grid), attack) for block in blocks for attack in built(block, file)]


def built(block: Mapping[str, Any], file: Path) -> Sequence[Attack]:
    if str(block.get("name", "")).startswith(PREFIX):
        return (FoolboxAttack.of(block),)
    return attacks_of([block], str(file))


def words_of(block: Mapping[str, Any], attack: Attack, grid: int | None) -> str:
    """An attack as its block says it, its budget in steps of the grid."""
    size = "" if attack.budget is None else f" {range_text(attack.budget, attack.norm, grid)}"
    rest = (f", {key} {value}" for key, value in block.items() if key not in ("name", "budget", "norm"))
    return f"{attack.name.removeprefix(PREFIX)}{SYMBOLS[attack.norm]}{size}{''.join(rest)}"


@dataclass(frozen=True)
class Row:
    """A row of the table: what a cell's attack did to the model, and what the guard caught of it."""

    words: str
    aimed: bool
    bounded: bool  # by a budget; otherwise it is as small as the attack could make it
    tried: int
    verified: int
    caught: Caught

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts the worst first, at the larger rate and then the smaller; rows without an item come last."""
        values = (self.caught[rate] for rate in reversed(RATES))
        return tuple(1.1 if found is None or not found.items else found.value for found in values)

    @property
    def meets(self) -> bool:
        """Whether every aim is met by the share that was caught, whatever its interval."""
        found = [(self.caught[rate], aim) for rate, aim in AIMS.items()]
        return all(rate is not None and rate.items > 0 and rate.value >= aim for rate, aim in found)


def row_of(cell: Cell, crafted: CraftedSet, guard: OpenedGuard, promises: Sequence[Promise], scale: Scale) -> Row:
    readings = read(guard.cascade, crafted.attacked)
    bounded = cell.attack.budget is not None
    size = "" if bounded or not len(crafted) else f", median L2 {float(np.median(crafted.l2)):.2f}"
    caught = caught_at(promises, readings.p_value)
    return Row(cell.words + size, scale.aimed(cell.attack), bounded, crafted.tried, len(crafted), caught)


@dataclass(frozen=True, eq=False)
class Table:
    """All rows, and the false alarms beside them."""

    rows: Sequence[Row]
    alarms: Caught
    promises: Sequence[Promise]
    items: int  # verified, that each row was to have

    def lines(self) -> Iterator[str]:
        """Yield the table for 80 columns, the worst row first, and the summary."""
        heads = (counts("tried"), counts("fool"), *(shares(f"at {promise_text(p)}") for p in self.promises))
        table = new_table("attack on the bare model", [*heads, Column("aim", no_wrap=True)])
        for row in sorted(self.rows, key=lambda one: one.order):
            mark = ("met" if row.meets else "missed") if row.aimed else ""
            cells = (rate_text(row.caught[rate]) for rate in RATES)
            table.add_row(row.words, str(row.tried), str(row.verified), *cells, mark)
        yield from plain_lines([table, "", *(Text(line) for line in self.summary())])

    def summary(self) -> Iterator[str]:
        aims = ", ".join(f"{aim:.0%} at {rate:.0%}" for rate, aim in AIMS.items())
        groups = {
            "from L∞ 3/255 or L2 0.3 on": [row for row in self.rows if row.aimed],
            "below, or in other norms": [row for row in self.rows if not row.aimed and row.bounded],
            "without a budget, as small as can be": [row for row in self.rows if not row.bounded],
        }
        yield f"the aims: {aims}"
        for name, rows in groups.items():
            if rows:
                worst = min(rows, key=lambda one: one.order)
                yield f"{name}: {sum(row.meets for row in rows)} of {len(rows)} rows meet them;"
                yield f"  the worst, {worst.words}: {rate_text(worst.caught[RATES[-1]])} at {RATES[-1]:.0%}"
        few = sum(row.verified < self.items for row in self.rows)
        if few:
            yield f"rows of fewer than {self.items} items, since no more of the data's are fooled: {few}"
        alarms = (f"{rate_text(self.alarms[rate], 1)} at {rate:.0%}" for rate in RATES)
        clean = next((found.items for found in self.alarms.values() if found is not None), 0)
        yield f"false alarms on {clean} clean items: {', '.join(alarms)}"
        yield from (f"nothing is stated at {promise_text(p)}: {p.reason}" for p in self.promises if p.reason)


def engine_of(guard: OpenedGuard, held_out: Dataset, work: WorkDirectory) -> Model:
    """The model on torch or ONNX Runtime, whichever was faster when these cells were begun."""
    batch = held_out.images[: shard_items(held_out.item_shape)]
    key = cache_key(guard.classifier.spec.fingerprint, (engine.__name__,))
    chosen = work.choices.choice("engine", key, lambda: choose_engine(guard.classifier, batch, work)[0])
    return TorchModel(guard.classifier.graph) if chosen == "torch" else compiled_model(guard.classifier, batch, work)


def crafted_by(crafter: Crafter, attack: Attack, items: int, progress: Progress) -> CraftedSet:
    """The first whole shards that hold so many verified items; all of them where there are too few."""
    tried = crafter.whole(items)
    while True:
        (found,) = crafter.attacked([attack], tried=[tried], progress=progress)
        wanted = crafter.whole(
            more(tried, len(found), step=crafter.shard_size, available=crafter.items, wanted=items)
        )  # fmt: skip
        if wanted == tried:
            break
        tried = wanted
    least = crafter.enough(found, items)
    return found if least == tried else crafter.attacked([attack], tried=[least])[0]


def foretold(crafter: Crafter, cells: Sequence[Cell], held_out: Dataset, items: int, progress: Stage) -> list[float]:
    """Seconds that each cell will take at least: its passes are counted on two items, at the speed of a batch."""
    model = as_allowed(crafter.run.model, crafter.run.grid)
    images = torch.from_numpy(held_out.images[: crafter.shard_size])
    few, labels = images[:PROBED_ITEMS], torch.from_numpy(held_out.labels[:PROBED_ITEMS])
    forward_s, backward_s = speed(model, images)
    tried, block, found = crafter.whole(items) / crafter.run.threads, BLOCK_SHARDS * crafter.shard_size, []
    for cell in cells:
        progress.note(f"passes of {cell.words}")
        cost = passes(model, cell.attack, few, labels, block)
        found.append(tried * (cost.forward * forward_s + cost.backward * backward_s))
    return found


def measure(
    bundle: Bundle,
    data: Path,
    cells: Path | None,
    items: int,
    folder: Path,
    threads: int | None,
    console: Console,
    *,
    every: int = 1,
) -> Table:
    """Attack the bare model by each cell, or every few, and read what comes out with the bundle; show how far it is."""
    kept, beside = WorkDirectory(folder), Work.beside(bundle)
    kept.begin()
    stages = Stages(console)
    with stages.stage("open bundle and data"):
        held_out, _ = beside.held_out(bundle, data)
        guard = beside.subject(bundle)
        spec = guard.classifier.spec
        scale = Scale(spec.input.grid)
        chosen = usual_cells(scale)[::every] if cells is None else cells_in(cells, spec.input.grid)
        model, grid, answering = engine_of(guard, held_out, kept), grid_for(spec.input), guard.classifier.answering
        run = CraftSetup(
            model, grid, spec.fingerprint, kept.crafted, SEED, workers=threads, answering=answering
        )  # fmt: skip
        crafter = Crafter.open(run, held_out)
        clean = read(guard.cascade, held_out.images)
    promises = [Promise.of(rate, guard.cascade.calibration.items) for rate in RATES]
    rows, began = [], time.monotonic()
    with stages.stage("foretell the time") as progress:
        expected = foretold(crafter, chosen, held_out, items, progress)
        progress.say(
            f"{len(chosen)} cells of {items} items each; the model has {crafter.items} right",
            f"attacks of {duration(sum(expected))}, more where few items are fooled, less what {folder} holds",
        )
    with stages.stage("attack the model") as progress:
        for number, cell in enumerate(chosen):
            started = time.monotonic()
            crafted = crafted_by(crafter, cell.attack, items, progress.items)
            rows.append(row_of(cell, crafted, guard, promises, scale))
            progress.say(
                f"{number + 1:3} of {len(chosen)}  {cell.words}: {len(crafted)} of {crafted.tried} fool, "
                f"{time.monotonic() - started:.0f} s; to go: {duration(sum(expected[number + 1 :]))} and more"
            )
    console.print(f"  measured in {duration(time.monotonic() - began)}", highlight=False)
    return Table(rows, caught_at(promises, clean.p_value), promises, items)


def quick(console: Console) -> Table:
    """Train a guard on the tests' tiny images, and run some of the cells on few items: no figures to quote."""
    from tests.offline import tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = train(tiny.job(folder, recipe=tiny.plain(), threads=1), Stages(console))
        data = tiny.write_data(folder / "test.npz", QUICK_CLEAN_ITEMS, seed=8)
        return measure(bundle, data, None, QUICK_ITEMS, folder / "cells", 1, console, every=QUICK_CELLS)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="labelled; what the bundle knows is put aside")
    parser.add_argument("--cells", type=Path, help="a TOML file of [[attack]] blocks, in the place of the usual cells")
    parser.add_argument("--items", type=int, default=200, help="that each attack is to fool the model on")
    parser.add_argument("--work", type=Path, default=Path("off-recipe-bench"))
    parser.add_argument("--threads", type=int, help="attacks side by side; one a core unless given")
    parser.add_argument("--quick", action="store_true", help="on the tests' tiny images: no figures to quote")
    given, console = parser.parse_args(arguments), Console()
    if given.quick:
        print("\n".join(quick(console).lines()))
        return
    if given.bundle is None or given.data is None:
        parser.error("a bundle and --data are wanted")
    try:
        table = measure(
            Bundle.open(given.bundle), given.data, given.cells, given.items, given.work, given.threads, console
        )
    except (GuardError, StaleError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("\n".join(table.lines()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
