"""The crafting stage with minutes given: it plans, follows its plan, and is taken up again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guard.offline.crafting.learning
import guard.offline.crafting.shard
from guard.errors import ParityError
from guard.offline.attacks.methods.uap import Uap
from guard.offline.crafting import engine
from guard.offline.crafting import stage as crafting
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.engine import attack_model, choose_engine
from guard.offline.crafting.onnx_model import OnnxModel
from guard.offline.crafting.plan import Budget, Plan, Row, read_plan, write_plan
from guard.offline.crafting.stage import craft_all, learning_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import Recipe, parse
from guard.offline.model.classifier import Classifier
from guard.offline.work.directory import WorkDirectory
from tests.offline import tiny
from tests.offline.interruption import interrupted_at

SHARD = 64  # items of 8 x 8 values


@dataclass
class Said:
    """A stage whose lines are kept."""

    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        """Nobody sees it."""

    def items(self, what: object, done: int, total: int) -> None:
        """Nor this."""


def craft(job: Job, opened: tuple[Classifier, Dataset], said: Said | None = None) -> tuple[CraftedSet, ...]:
    stage: Any = said or Said()
    return craft_all(job, *opened, stage)


def same(ones: Sequence[CraftedSet], others: Sequence[CraftedSet]) -> bool:
    fields = [field.name for field in dataclasses.fields(CraftedSet)]
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(ones, others, strict=True)
        for name in fields
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is worth compiling, however busy this machine is."""
    monkeypatch.setattr(engine, "MIN_COMPILED_ITEM_S", float("inf"))


@pytest.fixture
def opened(problem: Path) -> tuple[Classifier, Dataset]:
    return open_job(tiny.job(problem))


def test_any_first_part_is_shared_out_between_heads_and_combiner(opened: tuple[Classifier, Dataset]) -> None:
    _, data = opened
    order = learning_items(data).hashes
    first, second = data.part(Split.HEADS).hashes, data.part(Split.COMBINER).hashes
    heads = np.isin(order, first)
    assert sorted(order) == sorted([*first, *second])
    for items in (10, 50, 100, 200):
        assert abs(heads[:items].mean() - 0.7) <= 1 / items + 0.01
    assert np.array_equal(order[heads], first)  # each part in its own order


def test_the_plan_is_printed_kept_and_followed(problem: Path, opened: tuple[Classifier, Dataset]) -> None:
    job, said = tiny.job(problem, minutes=30.0), Said()
    found = craft(job, opened, said)
    plan = read_plan(job.work)
    assert plan is not None
    assert said.lines[: len(plan.lines())] == plan.lines()
    assert [row.attack for row in plan.rows] == [repr(attack) for attack in job.recipe.attacks]
    assert 0 < plan.attack_items <= len(opened[1].part(Split.TEST))
    assert all(row.seconds > 0 and 0 < row.share < 1 for row in plan.rows)
    for row, one in zip(plan.rows, found, strict=True):
        assert row.tried == plan.available
        assert len(one) >= job.recipe.items or one.tried == plan.available  # this data holds no more, and that is said:
    assert [line for line in said.lines if "are wanted" in line] == plan.remarks()


def test_a_second_run_goes_on_with_the_plan_and_computes_nothing(
    problem: Path, opened: tuple[Classifier, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny.job(problem, minutes=30.0)
    first = craft(job, opened)
    before = {file: file.read_bytes() for file in job.work.path.rglob("*") if file.is_file()}
    monkeypatch.setattr(guard.offline.crafting.shard, "attack_shard", None)
    said = Said()
    assert same(craft(job, opened, said), first)
    assert "going on with the plan of before" in said.lines
    assert {file: file.read_bytes() for file in job.work.path.rglob("*") if file.is_file()} == before


def test_another_wish_is_another_plan(problem: Path, opened: tuple[Classifier, Dataset]) -> None:
    craft(tiny.job(problem, minutes=30.0), opened)
    said = Said()
    job = tiny.job(problem, minutes=30.0, craft_items=64, attack_items=20)
    found = craft(job, opened, said)
    plan = read_plan(job.work)
    assert "going on with the plan of before" not in said.lines
    assert plan is not None
    assert plan.attack_items == 20
    assert all(one.tried == plan.available <= 64 for one in found)


@pytest.mark.parametrize("stops_at", [1, 3, 6])
def test_interrupted_anywhere_it_ends_as_any_other(
    problem: Path, tmp_path: Path, opened: tuple[Classifier, Dataset], whole: tuple[CraftedSet, ...], stops_at: int
) -> None:
    """In a probe, or in the crafting; on two workers, against one that was left alone, whatever they plan."""
    job = tiny.job(problem, minutes=30.0, threads=2)
    with interrupted_at(stops_at):
        craft(job, opened)
    again, plan = craft(job, opened), read_plan(job.work)
    assert plan is not None
    assert [one.tried for one in again] == [enough(one, job.recipe.items) for one in whole]
    assert same(again, firsts(whole, [one.tried for one in again]))


def firsts(whole: Sequence[CraftedSet], tried: Sequence[int]) -> list[CraftedSet]:
    """The same attacks on no more than so many of the first items."""
    found = []
    for one, items in zip(whole, tried, strict=True):
        shown = one.tried_hashes[:items]
        kept = np.isin(one.hashes, shown)
        per_item = ("source", "hashes", "labels", "predictions", "clean", "attacked", "noise", "l2", "linf", "budgets")
        parts = {name: getattr(one, name)[kept] for name in per_item}
        found.append(dataclasses.replace(one, tried_hashes=shown, tried_budgets=one.tried_budgets[:items], **parts))
    return found


def enough(whole: CraftedSet, wanted: int) -> int:
    """How many of the first items hold so many verified ones, in whole shards: all where they are too few."""
    shards = np.append(np.arange(SHARD, whole.tried, SHARD), whole.tried)
    return next((tried for tried in shards.tolist() if len(firsts([whole], [tried])[0]) >= wanted), whole.tried)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[CraftedSet, ...]:
    """Every attack on every item that the model has right, without a plan and by one worker."""
    job = tiny.job(tmp_path_factory.mktemp("whole"), craft_items=1000, threads=1)
    return craft(job, open_job(job))


@pytest.mark.parametrize("wanted", [1, 40, 100, 10_000])
@pytest.mark.parametrize("planned", [[SHARD, SHARD], [SHARD, 4 * SHARD], [3 * SHARD, 10_000], None])
def test_whatever_was_planned_the_guard_gets_the_same_items(
    problem: Path,
    opened: tuple[Classifier, Dataset],
    whole: tuple[CraftedSet, ...],
    planned: list[int] | None,
    wanted: int,
) -> None:
    """The first whole shards that hold as many verified items as the recipe wants; all where there are too few."""
    minutes = None if planned is None else 30.0
    job, available = tiny.job(problem, minutes=minutes, threads=2, recipe=wanting(wanted)), whole[0].tried
    said = Said()
    if planned is not None:
        rows = tuple(
            Row(repr(attack), 0.01, 0.5, min(tried, available))
            for attack, tried in zip(job.recipe.attacks, planned, strict=True)
        )
        stage: Any = said
        key = crafting.Planner(job, *opened, stage, 0.0).key
        budget = Budget(minutes=30, spent=0, fitting=0, report=0)
        write_plan(job.work, Plan(key, "torch", "torch", 2, available, wanted, budget, rows, 20, 20))
    found = craft(job, opened, said)
    tried = [enough(one, wanted) for one in whole]
    assert [one.tried for one in found] == tried
    assert same(found, firsts(whole, tried))
    assert any("verified; trying" in line for line in said.lines) == any(
        count > row for count, row in zip(tried, planned or tried, strict=True)
    )


def wanting(items: int) -> Recipe:
    """The tiny recipe with this many verified items an attack."""
    return parse({**tiny.RECIPE, "items": items}, "tiny")


@pytest.mark.parametrize("minutes", [None, 30.0])
def test_what_attacks_one_split_was_learned_from_that_split_alone(
    problem: Path, opened: tuple[Classifier, Dataset], monkeypatch: pytest.MonkeyPatch, minutes: float | None
) -> None:
    lessons: list[tuple[set[Split], int]] = []
    learn, data = guard.offline.crafting.learning.learned_from, opened[1]

    def noted(attack: Any, block: Any) -> Any:
        learned = learn(attack, block)
        lessons.append(({data.splits[one] for one in learned.items.hashes.tolist()}, len(learned)))
        return learned

    monkeypatch.setattr(guard.offline.crafting.learning, "learned_from", noted)
    attacks = [{"name": "uap", "budget": 0.125, "epochs": 2}, tiny.RECIPE["attack"][0]]
    recipe = parse({**tiny.RECIPE, "attack": attacks}, "tiny")
    job, said = tiny.job(problem, minutes=minutes, recipe=recipe), Said()
    first = craft(job, opened, said)
    assert {frozenset(splits) for splits, _ in lessons} == {frozenset({Split.HEADS}), frozenset({Split.COMBINER})}
    assert first[0].tried == first[1].tried
    files = set(job.work.path.rglob("*"))
    monkeypatch.setattr(guard.offline.crafting.shard, "attack_shard", None)
    monkeypatch.setattr(Uap, "learn", lambda *_: pytest.fail("all of it is there"))
    assert same(craft(job, opened), first)
    assert set(job.work.path.rglob("*")) == files
    if minutes is not None:
        plan = read_plan(job.work)
        assert plan is not None
        assert plan.rows[0].seconds > 0


# What attacks run on.


def test_a_quick_model_is_not_worth_compiling(opened: tuple[Classifier, Dataset], tmp_path: Path) -> None:
    classifier, data = opened
    name, reason = choose_engine(classifier, data.images[:64], WorkDirectory(tmp_path / "work"))
    assert (name, reason.split(",")[0]) == ("torch", "torch")
    assert not (tmp_path / "work").exists()
    model = attack_model(classifier, data.images, WorkDirectory(tmp_path / "work"))
    assert (model.engine, model.module) == ("torch", classifier.graph)


@pytest.fixture
def slow(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is worth trying to compile."""
    monkeypatch.setattr(engine, "MIN_COMPILED_ITEM_S", 0.0)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("faster", ["torch", "onnxruntime"])
def test_the_faster_is_chosen_once_and_for_all(
    problem: Path, opened: tuple[Classifier, Dataset], monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    times = [1.0, 2.0] if faster == "torch" else [2.0, 1.0]
    monkeypatch.setattr(engine, "gradient_seconds", lambda models, images: times[: len(models)])
    job = tiny.job(problem, minutes=30.0)
    first = craft(job, opened)
    plan = read_plan(job.work)
    assert plan is not None
    assert plan.engine == faster
    assert isinstance(attack_model(*opened_images(opened), job.work), OnnxModel) == (faster == "onnxruntime")
    monkeypatch.setattr(engine, "gradient_seconds", lambda models, images: times[::-1][: len(models)])
    monkeypatch.setattr(guard.offline.crafting.shard, "attack_shard", None)
    assert same(craft(job, opened), first)  # the race is not run again
    with torch.no_grad():
        for one in first:
            assert (opened[0](torch.from_numpy(one.attacked)).argmax(dim=1).numpy() == one.predictions).all()
            assert (one.predictions != one.labels).all()


def opened_images(opened: tuple[Classifier, Dataset]) -> tuple[Classifier, Any]:
    return opened[0], opened[1].images


@pytest.mark.usefixtures("slow")
def test_one_that_disagrees_is_not_used_and_that_is_said(
    opened: tuple[Classifier, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagrees(*_: Any) -> Any:
        raise ParityError("ONNX Runtime and torch differ by 1")

    monkeypatch.setattr(engine, "open_compiled", disagrees)
    assert choose_engine(opened[0], opened[1].images[:64], WorkDirectory(tmp_path)) == (
        "torch",
        "torch: ONNX Runtime and torch differ by 1",
    )


def test_the_plan_file_is_plain_json(problem: Path, opened: tuple[Classifier, Dataset]) -> None:
    job = tiny.job(problem, minutes=30.0)
    craft(job, opened)
    content = json.loads((job.work.plan).read_text("utf-8"))
    assert set(content) >= {"engine", "reason", "rows", "budget", "available", "attack_items"}
