"""Attacks that learn first: from whom, how often, and what an interruption changes (nothing)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.offline.attacks.attack import Attack, Family, Traits
from guard.offline.attacks.informed import untaught
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter, craft
from guard.offline.crafting.learning import BLOCK_SHARDS, blocks_of, in_shards
from guard.offline.crafting.shard import CraftSetup, Shard
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import from_steps
from guard.offline.data.splits import Split, content_hashes
from guard.offline.evaluation.forecast import passes
from guard.offline.networks.weights import Knowledge
from guard.offline.work.files import read_arrays, write_arrays
from guard.offline.work.store import ResultStore
from tests.offline.crafting.test_crafter import GRID, Spoof, same
from tests.offline.interruption import interrupted_at

SIZE = 5  # of a shard


@dataclass(frozen=True)
class Average:
    """Learns what the mean item is, moves every item a way that follows from it, and notes who met whom."""

    learning_items: int = 1000
    lessons: list[Tensor] = field(default_factory=list, repr=False, compare=False)
    met: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False, compare=False)  # items, what was known

    name, family, norm, budget = "average", Family.UNIVERSAL, "linf", 0.25
    traits = Traits(learns=True)

    def learn(self, model: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Knowledge:
        self.lessons.append(inputs)
        model(inputs)
        return {"mean": inputs.mean(dim=0), "drawn": torch.rand(inputs.shape[1:], generator=generator)}

    def informed(
        self, knowledge: Knowledge, model: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        self.met.append((inputs, knowledge["mean"]))
        model(inputs)
        return inputs + 0.25 * (knowledge["mean"] + knowledge["drawn"] - 1).sign()

    def __call__(self, model: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        raise untaught(self)


@pytest.fixture(scope="module")
def network() -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5, bias=False))
    return TorchModel(layers.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def problem(network: nn.Module) -> Dataset:
    """Images that the network has right: 70 to fit heads on and 33 for the combiner, mixed."""
    images = from_steps(np.random.default_rng(0).integers(0, GRID + 1, (103, 1, 8, 8)), GRID)
    labels = network(torch.from_numpy(images)).argmax(dim=1).numpy()
    groups = np.random.default_rng(1).permutation(["heads"] * 70 + ["combiner"] * 33)
    return dataset(images, labels, groups)


def dataset(images: Any, labels: Any, groups: Any) -> Dataset:
    hashes = content_hashes(images)
    splits = {one: Split(group) for one, group in zip(hashes.tolist(), groups, strict=True)}
    return Dataset(images, labels, hashes, splits=splits)


def run(network: Any, problem: Dataset, attack: Attack, work: Path, **changes: Any) -> CraftedSet:
    progress = changes.pop("progress", None)
    return craft(crafting(network, work, **changes), problem, [attack], progress=progress)[0]


def crafting(network: Any, work: Path, **changes: Any) -> CraftSetup:
    settings: dict[str, Any] = {"grid": GRID, "fingerprint": "f", "seed": 0, "shard_items": SIZE, "workers": 1}
    return CraftSetup(network, work=ResultStore(work), **settings | changes)


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_a_block_attacks_its_own_items_and_learns_from_no_others(network, problem, tmp_path):
    attack = Average()
    found = run(network, problem, attack, tmp_path)
    assert 0 < len(found) <= found.tried == 103
    of_group = {image.tobytes(): group for image, group in zip(problem.images, problem.groups, strict=True)}
    lessons = [rows(lesson) for lesson in attack.lessons]
    assert Counter(len({of_group[one] for one in lesson}) for lesson in lessons) == {1: len(lessons)}
    assert sorted(len(lesson) for lesson in lessons) == [10, 13, 20, 20, 20, 20]
    assert set.union(*lessons) == set(of_group)
    assert sum(map(len, lessons)) == len(of_group)
    for inputs, mean in attack.met:
        (own,) = [i for i, lesson in enumerate(attack.lessons) if torch.equal(lesson.mean(dim=0), mean)]
        assert rows(inputs) <= lessons[own]
    assert len(attack.met) == 21


def test_it_learns_from_no_more_than_it_wants(network, problem, tmp_path):
    attack = Average(learning_items=7)
    run(network, problem, attack, tmp_path)
    assert {len(lesson) for lesson in attack.lessons} == {7}


@pytest.mark.parametrize("stops_at", [3, 6, 7, 20], ids=lambda nth: f"result {nth}")
def test_an_interrupted_run_goes_on_and_ends_as_any_other_bit_for_bit(network, problem, tmp_path, stops_at):
    """While the six blocks are learned for, or while their 21 shards are attacked."""
    attack = Average()
    with interrupted_at(stops_at):
        run(network, problem, attack, tmp_path / "one")
    assert len(attack.lessons) + len(attack.met) == stops_at
    assert len(attack.lessons) == min(stops_at, 6)
    resumed = run(network, problem, attack, tmp_path / "one")
    assert len(attack.lessons) + len(attack.met) == 6 + 21 + 1, "only what was not kept is made again"
    assert same(resumed, run(network, problem, Average(), tmp_path / "other"))
    assert same(resumed, run(network, problem, attack, tmp_path / "one"))
    assert len(attack.lessons) + len(attack.met) == 6 + 21 + 1


def test_progress_tells_first_the_learning_and_then_the_attack(network, problem, tmp_path):
    attack, said = Average(), []
    run(network, problem, attack, tmp_path, progress=lambda what, done, total: said.append((what, done, total)))
    assert [what for what, _, _ in said] == [f"learning {attack!r}"] * 6 + [attack] * 21
    assert all(total == 103 for _, _, total in said)
    for part in (said[:6], said[6:]):
        counts = [done for _, done, _ in part]
        assert counts == sorted(counts)
        assert counts[-1] == 103


def test_any_number_of_workers_gives_the_same_bits(network, problem, tmp_path):
    alone, beside = (run(network, problem, Average(), tmp_path / str(n), workers=n) for n in (1, 3))
    assert same(alone, beside)


def test_a_shard_is_found_again_only_by_what_its_attacker_knew(network, problem, tmp_path):
    attack = Average()
    before = run(network, problem, attack, tmp_path)
    (file, *others) = sorted(tmp_path.glob("average-learned-*"))
    assert len(others) == 5
    known = read_arrays(file)
    assert known is not None
    write_arrays(file, {**known, "mean": 1 - known["mean"]})
    assert not same(run(network, problem, attack, tmp_path), before)
    assert len(attack.lessons) == 6
    assert 21 + BLOCK_SHARDS - 1 <= len(attack.met) <= 21 + BLOCK_SHARDS + 1  # that block's alone
    file.write_bytes(b"")
    assert same(run(network, problem, attack, tmp_path), before)
    assert len(attack.lessons) == 7  # a file that cannot be read is made anew


@pytest.mark.parametrize("change", ["fingerprint", "seed", "grid"])
def test_nothing_that_knowledge_follows_from_may_change(network, problem, tmp_path, change):
    attack = Average()
    run(network, problem, attack, tmp_path)
    run(network, problem, attack, tmp_path, **{change: {"fingerprint": "g", "seed": 1, "grid": None}[change]})
    assert len(attack.lessons) == 12


def test_more_items_of_one_group_leave_what_full_blocks_learned(network, problem, tmp_path):
    """The report tries an attack on more items where too few fool the model."""
    attack = Average()
    for items in (60, 100):
        first = problem.take(slice(items))
        run(network, dataset(first.images, first.labels, ["test"] * items), attack, tmp_path)
    assert len(attack.lessons) == 5  # three of 20, then two more


def test_a_prefix_learns_for_the_blocks_that_it_touches(network, problem, tmp_path):
    target = Crafter.open(crafting(network, tmp_path), problem)
    attack = Average()
    assert target.shard_size == SIZE
    (few,) = target.attacked([attack], tried=[2 * SIZE])
    assert few.tried == 2 * SIZE
    assert len(attack.lessons) == len(target.blocks(2 * SIZE)) == 2
    (every,) = target.attacked([attack])
    assert np.array_equal(few.tried_hashes, every.tried_hashes[: 2 * SIZE])
    assert len(attack.lessons) == 6
    plain = target.attacked([Spoof(0.25)])[0]
    assert np.array_equal(plain.tried_hashes, every.tried_hashes)


def test_any_first_shards_hold_the_groups_in_proportion():
    groups = np.random.default_rng(0).permutation(["a"] * 703 + ["b"] * 299)
    parts = list(in_shards(np.arange(1002), groups, 10))
    assert sorted(np.concatenate([part for _, part in parts]).tolist()) == list(range(1002))
    for group, part in parts:
        assert (groups[part] == group).all()
    assert [len(part) for _, part in parts[-2:]] != [10, 10]
    assert all(len(part) == 10 for _, part in parts[:-2])
    for count in (10, 30, 50, 99):
        share = np.mean([group == "a" for group, _ in parts[:count]])
        assert abs(share - 0.7) <= 1 / count + 0.01


def test_without_groups_shards_are_as_they_always_were():
    places = np.arange(3, 40)
    parts = [part.tolist() for _, part in in_shards(places, np.full(43, ""), 10)]
    assert parts == [list(range(3, 13)), list(range(13, 23)), list(range(23, 33)), list(range(33, 40))]


@pytest.mark.parametrize(("shards", "blocks"), [(1, [1]), (4, [4]), (5, [5]), (6, [4, 2]), (9, [4, 5])])
def test_a_rest_of_less_than_half_a_block_joins_the_one_before(shards, blocks):
    blank = np.zeros(1, dtype=np.int64)
    items = Dataset(blank.astype(np.float32), blank, blank.astype(str))
    found = blocks_of([Shard(number, blank, items) for number in range(shards)])
    assert sorted(found) == list(range(shards))
    assert [len(block) for block in dict.fromkeys(found.values())] == blocks


def test_an_item_in_no_split_is_refused(network, problem, tmp_path):
    missing = problem.hashes[3]
    splits = {one: split for one, split in problem.splits.items() if one != missing}
    with pytest.raises(DataError, match=f"item {missing[:12]}… is in no split"):
        run(network, dataclasses.replace(problem, splits=splits), Average(), tmp_path)


def test_untaught_it_refuses(network, problem):
    with pytest.raises(ValueError, match="learn"):
        Average()(network, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), torch.Generator())


def test_what_learning_costs_is_shared_out_among_the_block(network):
    images, labels = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    assert passes(network, Average(), images, labels, block=100).forward == pytest.approx(
        2
    )  # once to learn, once after
    assert passes(network, Average(learning_items=50), images, labels, block=100).forward == pytest.approx(1.5)
