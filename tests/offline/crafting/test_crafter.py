"""Crafted sets: what counts as attacked, what is kept, and what survives an interruption."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard.errors import ConfigError, DataError, ModelError
from guard.offline.attacks.attack import Attack, Family, Traits
from guard.offline.attacks.methods.cw import Cw
from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.frame import Frame, UniversalFrame
from guard.offline.attacks.methods.patch import Patch
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.methods.uap import Uap
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.objective import gap
from guard.offline.crafting import shard as sharding
from guard.offline.crafting.checks import check_budgets, lifted
from guard.offline.crafting.crafted_set import CraftedSet
from guard.offline.crafting.crafter import Crafter, craft
from guard.offline.crafting.shard import CraftSetup, shard_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.grid import from_steps, off_grid, on_grid
from guard.offline.data.norms import Norm
from guard.offline.data.splits import Split, assign, content_hashes
from guard.offline.work.store import ResultStore
from tests.offline.interruption import interrupted_at

GRID = 16
ATTACKS: tuple[Attack, ...] = (
    Fgsm(budget=2 / 16),
    Pgd(budget=2 / 16, steps=6),
    Pgd(budget=0.5, norm="l2", steps=6),
    DeepFool(),
    Cw(steps=30, searches=2),
)
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
every_grid = pytest.mark.parametrize("grid", [GRID, None], ids=["on grid", "continuous"])


@dataclass(frozen=True)
class Spoof:
    """An attack that moves everything by `amount`, whatever it promised, and counts its calls."""

    amount: float
    budget: float | None = 0.25
    norm: Norm = "linf"
    calls: list[int] = dataclasses.field(default_factory=list, repr=False, compare=False)

    name = "spoof"
    family = Family.HIGH_CONFIDENCE
    traits = Traits()

    def __call__(self, model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        self.calls.append(len(inputs))
        return inputs + self.amount * torch.rand(inputs.shape, generator=generator)


@pytest.fixture(scope="module")
def network() -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5, bias=False))
    return TorchModel(layers.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def examples(network):
    """Images on the grid, and labels of which every fifth is not the network's answer."""
    steps = np.random.default_rng(0).integers(0, GRID + 1, (40, 1, 8, 8))
    images = from_steps(steps, GRID)
    labels = network(torch.from_numpy(images)).argmax(dim=1).numpy()
    labels[::5] = (labels[::5] + 1) % 5
    return Dataset(images, labels, content_hashes(images))


def arrays(examples: Dataset) -> tuple:
    return examples.images, examples.labels, examples.hashes


def run(network, examples, attack: Attack, work: Path, **changes) -> CraftedSet:
    progress = changes.pop("progress", None)
    return craft(crafting(network, work, **changes), examples, [attack], progress=progress)[0]


def crafting(network, work: Path, **changes) -> CraftSetup:
    settings = {"grid": GRID, "fingerprint": "f", "seed": 0, "shard_items": 12, "workers": 1} | changes
    return CraftSetup(network, work=ResultStore(work), **settings)


def same(one: CraftedSet, other: CraftedSet) -> bool:
    fields = dataclasses.fields(CraftedSet)
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields)


def answers(network, images) -> np.ndarray:
    return network(torch.tensor(images)).argmax(dim=1).numpy()


@every_attack
@every_grid
def test_what_counts_as_attacked_verifiably_is(network, examples, attack, grid, tmp_path):
    images, labels, hashes = arrays(examples)
    crafted = run(network, examples, attack, tmp_path, grid=grid)
    assert len(crafted) > 5
    assert crafted.tried == 32
    assert crafted.success_rate == len(crafted) / 32
    assert (answers(network, crafted.attacked) != crafted.labels).all()
    logits = network(torch.tensor(crafted.attacked))
    sure = gap(logits, torch.tensor(crafted.labels)) / logits.norm(dim=1)
    assert sure.min() > 1.4e-4  # what compile's parity law lets ONNX Runtime answer otherwise
    assert np.array_equal(answers(network, crafted.attacked), crafted.predictions)
    assert np.array_equal(answers(network, crafted.clean), crafted.labels)
    assert (crafted.source % 5 != 0).all()
    for given, kept in ((images, crafted.clean), (labels, crafted.labels), (hashes, crafted.hashes)):
        assert np.array_equal(given[crafted.source], kept)
    assert (crafted.attack, crafted.name, crafted.family) == (repr(attack), attack.name, attack.family)


@every_attack
@every_grid
def test_attacked_and_noisy_items_lie_in_box_ball_and_on_the_grid(network, examples, attack, grid, tmp_path):
    crafted = run(network, examples, attack, tmp_path, grid=grid)
    for images in (crafted.attacked, crafted.noise):
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert grid is None or on_grid(images, grid)
    perturbation = crafted.attacked.astype(np.float64) - crafted.clean
    np.testing.assert_allclose(crafted.l2, np.sqrt((perturbation**2).sum(axis=(1, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(crafted.linf, np.abs(perturbation).max(axis=(1, 2, 3)), rtol=1e-5)
    if attack.budget is not None:
        size = crafted.linf if attack.norm == "linf" else crafted.l2
        assert (size <= attack.budget + 1e-6).all()


@every_attack
def test_noise_is_of_the_attacks_size_and_is_not_the_attack(network, examples, attack, tmp_path):
    crafted = run(network, examples, attack, tmp_path)
    noise = (crafted.noise.astype(np.float64) - crafted.clean).reshape(len(crafted), -1)
    small = crafted.linf <= 0.5  # a larger step may find no room on either side
    assert small.mean() > 0.7
    np.testing.assert_allclose(np.sqrt((noise**2).sum(axis=1))[small], crafted.l2[small], rtol=1e-5)
    np.testing.assert_allclose(np.abs(noise).max(axis=1)[small], crafted.linf[small], rtol=1e-5)
    assert (answers(network, crafted.noise) == crafted.labels).mean() > 0.5


def test_an_attack_that_does_nothing_counts_for_nothing(network, examples, tmp_path):
    crafted = run(network, examples, Spoof(0.0), tmp_path)
    assert len(crafted) == 0
    assert crafted.tried == 32
    assert crafted.success_rate == 0
    assert crafted.attacked.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@every_grid
def test_an_attack_that_leaves_its_ball_is_pulled_back(network, examples, norm, grid, tmp_path):
    crafted = run(network, examples, Spoof(0.9, budget=0.25 if norm == "linf" else 2.0, norm=norm), tmp_path, grid=grid)
    assert len(crafted) > 0
    assert (crafted.linf <= 0.25 + 1e-6).all() if norm == "linf" else (crafted.l2 <= 2 + 1e-5).all()


def test_minimal_attacks_survive_snapping_by_stretching(network, examples, tmp_path, monkeypatch):
    raw = run(network, examples, DeepFool(), tmp_path, grid=None)
    stretched = run(network, examples, DeepFool(), tmp_path)
    monkeypatch.setattr(sharding, "STRETCH_FACTORS", (1.0,))
    plain = run(network, examples, DeepFool(), tmp_path / "plain")
    assert raw.success_rate == 1
    assert stretched.success_rate > max(0.9, plain.success_rate)
    both = np.isin(stretched.source, plain.source)  # what needed no stretching was not stretched
    assert np.array_equal(stretched.attacked[both], plain.attacked)


def test_an_interrupted_run_goes_on_and_ends_as_any_other_bit_for_bit(network, examples, tmp_path):
    attack = Spoof(0.25)
    with interrupted_at(3):
        run(network, examples, attack, tmp_path / "one")
    assert attack.calls == [12, 12, 8]
    resumed = run(network, examples, attack, tmp_path / "one")
    assert attack.calls == [12, 12, 8, 8], "the one that was not kept, and no other"
    attack.calls.clear()
    whole = run(network, examples, attack, tmp_path / "other")
    assert same(resumed, whole)
    assert len(whole) > 0
    again = run(network, examples, attack, tmp_path / "one")
    assert len(attack.calls) == 3, "of the whole run"
    assert same(again, whole)


@every_attack
def test_any_number_of_workers_gives_the_same_bits(network, examples, attack, tmp_path):
    alone, beside = (run(network, examples, attack, tmp_path / str(n), workers=n) for n in (1, 3))
    assert same(alone, beside)
    assert len(alone) > 0


def test_a_setup_serves_several_runs_on_any_number_of_workers(network, examples, tmp_path):
    """As where a report tries an attack on more items, since the first ones gave too few."""
    setup = crafting(network, tmp_path, workers=2, shard_items=4)
    (few,) = craft(setup, examples.take(slice(12)), [Spoof(0.25)])
    (more,) = craft(setup, examples, [Spoof(0.25)])
    assert 0 < len(few) < len(more)


def test_an_interrupt_beside_other_workers_loses_no_finished_shard(network, examples, tmp_path):
    attack = Spoof(0.25)
    with interrupted_at(3):
        run(network, examples, attack, tmp_path / "one", workers=2, shard_items=4)
    kept = len(list((tmp_path / "one").iterdir()))
    assert 2 <= kept < 8
    attack.calls.clear()
    resumed = run(network, examples, attack, tmp_path / "one", workers=2, shard_items=4)
    assert len(attack.calls) == 8 - kept
    assert same(resumed, run(network, examples, attack, tmp_path / "other", shard_items=4))


def test_each_attack_is_tried_on_as_many_of_the_first_items_as_is_said(network, examples, tmp_path):
    target = Crafter.open(crafting(network, tmp_path), examples)
    attack = Spoof(0.25)
    assert (target.items, target.shard_size) == (32, 12)
    fewer, more, all_of_them = target.attacked([attack] * 3, tried=[5, 24, None])
    assert (fewer.tried, more.tried, all_of_them.tried) == (5, 24, 32)
    for part in (fewer, more):
        assert np.array_equal(part.tried_hashes, all_of_them.tried_hashes[: part.tried])
    assert same(all_of_them, run(network, examples, attack, tmp_path))
    assert sorted(attack.calls) == [5, 8, 12, 12]  # full shards are shared
    before = len(attack.calls)
    assert same(target.attacked([attack], tried=[24], anew=True)[0], more)
    assert len(attack.calls) == before + 2


def test_a_shard_is_found_again_only_by_what_computed_it(network, examples, tmp_path):
    attack = Spoof(0.25)
    run(network, examples, attack, tmp_path)

    class Other(TorchModel):
        engine = "another"

    run(Other(network.module), examples, attack, tmp_path)
    assert len(attack.calls) == 6


def test_a_shard_of_large_items_has_fewer():
    assert [shard_items(shape) for shape in [(30,), (3, 32, 32), (3, 64, 64), (3, 224, 224), (3, 1024, 1024)]] == [
        64,
        64,
        64,
        8,
        8,
    ]


@pytest.mark.parametrize("change", ["fingerprint", "seed", "grid", "attack", "images", "hashes", "shard_items"])
def test_nothing_that_an_outcome_follows_from_may_change(network, examples, change, tmp_path):
    images, labels, hashes = arrays(examples)
    attack = Spoof(0.25)
    run(network, examples, attack, tmp_path)
    before = len(attack.calls)
    brighter = images.copy()
    brighter[:, 0, 0, 0] = 1 - brighter[:, 0, 0, 0]
    labels_then = np.where(np.arange(40) % 5 == 0, labels, answers(network, brighter))
    settings = {"fingerprint": "g", "seed": 1, "grid": None, "shard_items": 11}
    given = {
        "images": Dataset(brighter, labels_then, hashes),
        "hashes": Dataset(images, labels, hashes[::-1].copy()),
    }
    told = dataclasses.replace(attack, amount=0.26) if change == "attack" else attack
    run(network, given.get(change, examples), told, tmp_path, **{k: v for k, v in settings.items() if k == change})
    assert len(attack.calls) >= 2 * before  # nothing was found again


def test_the_seed_reaches_the_attack(network, examples, tmp_path):
    one, other = (run(network, examples, Spoof(0.25), tmp_path, seed=seed) for seed in (0, 1))
    assert not same(one, other)
    assert not np.array_equal(one.attacked[:4], other.attacked[:4])


def test_a_damaged_shard_is_made_anew_and_nothing_unfinished_is_left(network, examples, tmp_path):
    attack = Spoof(0.25)
    whole = run(network, examples, attack, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(file.suffix == ".npz" and not file.name.startswith(".") for file in files)
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    assert same(run(network, examples, attack, tmp_path), whole)
    assert len(attack.calls) == 5


def test_progress_tells_attack_and_items(network, examples, tmp_path):
    seen = []
    attacks = [Fgsm(budget=0.125), Spoof(0.0)]
    sets = craft(
        crafting(network, tmp_path, shard_items=20), examples, attacks, progress=lambda *call: seen.append(call)
    )
    assert seen == [(attack, done, 32) for attack in attacks for done in (20, 32)]
    assert [one.attack for one in sets] == [repr(attack) for attack in attacks]


def test_selecting_keeps_clean_and_attacked_versions_of_an_item_in_one_split(network, examples, tmp_path):
    crafted = run(network, examples, Fgsm(budget=0.125), tmp_path)
    splits = assign(examples.hashes)
    parts = {split: crafted.select(splits, split) for split in Split}
    assert sum(len(part) for part in parts.values()) == len(crafted)
    assert sum(part.tried for part in parts.values()) == crafted.tried
    assert np.isnan(parts[Split.TEST].success_rate)
    for split, part in parts.items():
        assert all(splits[one] is split for one in part.hashes)
        assert np.array_equal(examples.images[part.source], part.clean)
        assert np.array_equal(answers(network, part.attacked), part.predictions)
    both = crafted.select(splits, Split.HEADS, Split.COMBINER)
    assert len(both) == len(parts[Split.HEADS]) + len(parts[Split.COMBINER]) > 0


def test_crafted_items_are_in_memory_once_while_they_are_read(tmp_path):
    images = from_steps(np.random.default_rng(0).integers(0, GRID + 1, (96, 3, 64, 64)), GRID)
    network = TorchModel(nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(12, 3)).eval().requires_grad_(False))
    labels = network(torch.from_numpy(images)).argmax(dim=1).numpy()
    crafter = Crafter.open(crafting(network, tmp_path), Dataset(images, labels, content_hashes(images)))
    attacks = [Fgsm(budget=8 / 16), Fgsm(budget=9 / 16)]
    held = sum(one.clean.nbytes + one.attacked.nbytes + one.noise.nbytes for one in crafter.attacked(attacks))
    tracemalloc.start()
    try:
        crafter.attacked(attacks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held > images.nbytes
    assert peak < 1.6 * held


def test_nothing_given_is_changed(network, examples, tmp_path):
    kept = [array.copy() for array in arrays(examples)]
    for array in arrays(examples):
        array.setflags(write=False)
    run(network, examples, Pgd(budget=0.125, steps=2), tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(kept, arrays(examples), strict=True))


def test_off_grid_is_half_a_step_away_everywhere():
    clean = from_steps(np.random.default_rng(0).integers(0, 17, (30, 1, 8, 8)), 16)
    moved = off_grid(clean, 16, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.abs(moved - clean), 0.5 / 16, atol=1e-6)
    assert moved.min() >= 0
    assert moved.max() <= 1
    inner = (clean > 0) & (clean < 1)
    assert abs((moved > clean)[inner].mean() - 0.5) < 0.05
    assert not np.array_equal(moved, off_grid(clean, 16, torch.Generator().manual_seed(1)))


def test_a_model_in_training_mode_is_refused(network, examples, tmp_path):
    with pytest.raises(ModelError, match="training mode"):
        run(TorchModel(nn.Sequential(network.module, nn.Dropout())), examples, ATTACKS[0], tmp_path)


class Computed(nn.Module):
    """A module whose answers a function computes."""

    def __init__(self, answers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answers = answers
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.answers(images)


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda x: x.flatten(1)[:, :5] * torch.nan, "NaN"), (lambda x: x.sum(), "wanted logits")],
    ids=["nan", "shape"],
)
def test_a_model_without_usable_logits_is_refused(function, message, examples, tmp_path):
    with pytest.raises(ModelError, match=message):
        run(TorchModel(Computed(function)), examples, ATTACKS[0], tmp_path)


def bad(images, labels, hashes, name: str):
    cases = {
        "too few labels": ((images, labels[1:], hashes), "39 labels"),
        "none": ((images[:0], labels[:0], hashes[:0]), "0 images"),
        "float64": ((images.astype(np.float64), labels, hashes), "float64"),
        "range": ((images * 2 - 1, labels, hashes), r"wanted float32 in \[0, 1\]"),
        "nan": ((images * np.float32("nan"), labels, hashes), r"wanted float32 in \[0, 1\]"),
        "grid": ((images * np.float32(0.99), labels, hashes), "not on a grid of 16"),
        "negative": ((images, labels - 9, hashes), "wanted int64 class numbers"),
        "large": ((images, labels + 9, hashes), "tells 5 classes apart"),
        "all wrong": ((images[::5], labels[::5], hashes[::5]), "none of 8 items correctly"),
    }
    return cases[name]


@pytest.mark.parametrize(
    "name", ["too few labels", "none", "float64", "range", "nan", "grid", "negative", "large", "all wrong"]
)
def test_data_that_cannot_be_attacked_is_refused(network, examples, name, tmp_path):
    given, message = bad(*arrays(examples), name)
    with pytest.raises(DataError, match=message):
        run(network, Dataset(*given), ATTACKS[0], tmp_path)
    assert not list(tmp_path.iterdir())


RANGED = Pgd(budget=[1 / 16, 4 / 16], steps=[2, 6], optimiser=["sign", "adam", "momentum"], random_start=[True, False])


@every_grid
def test_of_a_range_each_item_keeps_within_the_budget_that_it_drew(network, examples, grid, tmp_path):
    crafted = run(network, examples, RANGED, tmp_path, grid=grid)
    assert len(crafted) > 10
    assert (crafted.linf <= crafted.budgets + 1e-6).all()
    assert len(set(crafted.tried_budgets.tolist())) >= (3 if grid else 32)
    assert crafted.tried_budgets.min() >= 1 / 16
    assert crafted.tried_budgets.max() <= crafted.budget == 4 / 16
    if grid:
        assert set((16 * crafted.tried_budgets).tolist()) <= {1, 2, 3, 4}


def test_what_an_item_draws_depends_on_no_shard_no_worker_and_no_interruption(network, examples, tmp_path):
    def budgets(crafted: CraftedSet) -> dict[str, float]:
        return dict(zip(crafted.tried_hashes.tolist(), crafted.tried_budgets.tolist(), strict=True))

    whole = run(network, examples, RANGED, tmp_path / "one")
    assert same(run(network, examples, RANGED, tmp_path / "beside", workers=3), whole)
    assert budgets(run(network, examples, RANGED, tmp_path / "small", shard_items=5)) == budgets(whole)
    (first,) = Crafter.open(crafting(network, tmp_path / "few"), examples).attacked([RANGED], tried=[7])
    assert budgets(first) == {one: budgets(whole)[one] for one in first.tried_hashes.tolist()}
    assert budgets(run(network, examples, RANGED, tmp_path / "other", seed=1)) != budgets(whole)


def test_a_split_keeps_the_budgets_of_its_own_items(network, examples, tmp_path):
    crafted = run(network, examples, RANGED, tmp_path)
    every = dict(zip(crafted.tried_hashes.tolist(), crafted.tried_budgets.tolist(), strict=True))
    part = crafted.select(assign(examples.hashes), Split.HEADS)
    assert 0 < part.tried < crafted.tried
    assert [every[one] for one in part.tried_hashes.tolist()] == part.tried_budgets.tolist()
    assert [every[one] for one in part.hashes.tolist()] == part.budgets.tolist()


def test_a_budget_below_one_step_of_the_grid_is_refused(network, examples, tmp_path):
    with pytest.raises(ConfigError, match="below one step, 1/16"):
        run(network, examples, Pgd(budget=8 / 255), tmp_path)
    with pytest.raises(ConfigError, match="below one step, 1/16"):
        run(network, examples, Pgd(budget=[4 / 255, 8 / 255]), tmp_path)
    assert run(network, examples, Pgd(budget=8 / 255, steps=2), tmp_path, grid=None).tried == 32
    with pytest.raises(ConfigError, match="shard_items"):
        run(network, examples, ATTACKS[0], tmp_path, shard_items=0)


@every_grid
def test_a_range_that_begins_below_one_step_begins_at_it(network, examples, grid, tmp_path):
    attack = Pgd(budget=[0.002, 0.25], steps=2)
    crafted = run(network, examples, attack, tmp_path, grid=grid)
    assert crafted.tried_budgets.min() >= (1 / grid if grid else 0.002)
    assert len(lifted([attack, Pgd(budget=0.25), Pgd(norm="l2", budget=[0.002, 1.0])], grid)) == (1 if grid else 0)


@every_grid
def test_what_learns_draws_no_less_than_a_step(examples, grid):
    """Its one budget is drawn for all items, and nothing lifts it."""
    attack = Uap(budget=[0.002, 0.25])
    assert not lifted([attack], grid)
    if grid:
        with pytest.raises(ConfigError, match="below one step"):
            check_budgets([attack], grid, examples.item_shape)


@pytest.mark.parametrize("budget", [8, 1.5, [0.1, 8]])
@every_grid
def test_a_budget_of_more_than_all_values_is_refused(network, examples, budget, grid, tmp_path):
    with pytest.raises(ConfigError, match=r"is above 1, .* of 255\? Give [18.5]+/255 = 0.0"):
        run(network, examples, Pgd(budget=budget), tmp_path, grid=grid)
    check_budgets([Pgd(norm="l2", budget=budget)], grid, examples.item_shape)
    table = FeatureGrid.plain(3)
    check_budgets([Pgd(budget=budget)], table, (3,))


@pytest.mark.parametrize("attack", [Patch, Frame, UniversalFrame])
def test_a_budget_that_covers_no_place_is_refused_before_anything_is_crafted(attack, network, examples, tmp_path):
    places = examples.item_shape[1] * examples.item_shape[2]
    for budget in (0.5 / places, [0.5 / places, 0.2]):
        with pytest.raises(ConfigError, match=f"of {places} places is not one"):
            run(network, examples, attack(budget=budget), tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
