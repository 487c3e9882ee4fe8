"""The forecast of a training: passes are counted, seconds and memory are near what the real thing takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from guard.cascade import Cascade
from guard.errors import ModelError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.model import TorchModel
from guard.offline.attacks.table import build_attack
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.plan import MIN_FAMILY_ITEMS
from guard.offline.crafting.shard import CraftSetup
from guard.offline.crafting.stage import learning_items
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.detectors.detector import Detector
from guard.offline.detectors.mahalanobis import Mahalanobis
from guard.offline.detectors.table import build_detector
from guard.offline.evaluation.forecast import Counted
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe, parse
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from guard.offline.preflight.check import cost_lines, forwards_text, gradient_text
from guard.offline.preflight.cost import Cost, Speeds, cost_of, counted, seconds
from guard.offline.preflight.fitting import FittingSize
from guard.offline.train import choose_and_fit
from guard.offline.training.build import Prepared, compile_heads
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.fit_heads import settled
from guard.offline.work.progress import Stages
from guard.offline.work.store import ResultStore
from tests.offline import tiny

MAX_ITEMS_SHARE = 0.2  # of the items that were forecast, by which those that pass may differ
PASSES_AS_SECONDS = Speeds((1.0, 1.0), (1.0, 1.0))

PGD = build_attack("pgd", {"budget": 0.25, "steps": 7})
UAP = build_attack("uap", {"budget": 0.25, "epochs": 3})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Classifier, Dataset]:
    job = tiny.job(tmp_path_factory.mktemp("cost"), minutes=25.0, threads=1)
    return job, *open_job(job)


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_pgd_passes_are_counted_exactly(steps: int) -> None:
    """One gradient a step, and one more forward with a gradient to choose the best point."""
    found = counted(build_attack("pgd", {"budget": 0.25, "steps": steps}), tiny.SHAPE, tiny.CLASSES)
    assert found.forward + found.backward == steps + 1


def test_ranges_are_counted_as_what_items_draw_of_them() -> None:
    """Steps from 5 to 40, evenly in the logarithm: a quarter and three quarters of the way are 8 and 24."""
    settings = {"budget": [0.0625, 0.25], "steps": [5, 40], "optimiser": ["sign", "adam"]}
    found = counted(build_attack("pgd", settings), tiny.SHAPE, tiny.CLASSES)
    assert (8 + 24) / 2 <= found.forward + found.backward <= 24 + 1


def test_fgsm_is_one_gradient() -> None:
    assert counted(build_attack("fgsm", {"budget": 0.25}), tiny.SHAPE, tiny.CLASSES).backward == 1


def test_what_is_learned_for_a_block_is_shared_among_its_items() -> None:
    """An epoch of a universal perturbation passes each of the items it learns from once; they serve the block."""
    few, more = (
        counted(build_attack("uap", {"budget": 0.25, "epochs": epochs}), tiny.SHAPE, tiny.CLASSES) for epochs in (2, 6)
    )
    assert few.backward == pytest.approx(2, abs=0.1)
    assert more.backward == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize(
    ("attack", "share"),
    [
        (build_attack("fgsm", {"budget": 0.25}), 0.0),
        (build_attack("pgd", {"budget": 0.25, "steps": 20}), 0.0),
        (build_attack("uap", {"budget": 0.25, "epochs": 5}), 0.0),
        (build_attack("deepfool", {}), 0.05),  # a few items need a step more
        (build_attack("cw", {"steps": 20, "searches": 4}), 0.15),  # it gives up where a search no longer improves
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_crafting_makes_the_passes_that_were_forecast(
    attack: Attack, share: float, opened: tuple[Job, Classifier, Dataset], tmp_path: Path
) -> None:
    """Seconds are passes times a measured speed; of each item, learning and verifying included."""
    _, classifier, data = opened
    learning = learning_items(data)
    forecast = len(learning) * seconds(attack, tiny.SHAPE, tiny.CLASSES, PASSES_AS_SECONDS)
    model = Counted(TorchModel(classifier.graph))
    run = CraftSetup(model, tiny.GRID, classifier.spec.fingerprint, ResultStore(tmp_path), 0, workers=1)
    craft(run, learning, [attack])
    assert model.forwards + model.backwards == pytest.approx(forecast, rel=share)


def test_no_more_items_are_forecast_than_there_are(opened: tuple[Job, Classifier, Dataset]) -> None:
    job, classifier, data = opened
    few = data.take(slice(200))
    assert cost_of(job, classifier, few).fitted_items == len(learning_items(few)) < MIN_FAMILY_ITEMS
    assert cost_of(replace(job, craft_items=50), classifier, data).fitted_items == 50


def test_memory_grows_with_what_is_attacked(opened: tuple[Job, Classifier, Dataset]) -> None:
    """Twice 250 further items of two attacks, each held four times as float32."""
    job, classifier, data = opened
    small, large = (cost_of(replace(job, craft_items=items), classifier, data) for items in (50, 300))
    further = 2 * 250 * 4 * 64 * 4
    assert large.memory_bytes - small.memory_bytes >= further


def test_threads_share_the_crafting(opened: tuple[Job, Classifier, Dataset]) -> None:
    job, classifier, data = opened
    alone, beside = (cost_of(replace(job, threads=threads), classifier, data) for threads in (1, 8))
    ratio = (alone.crafting_s / alone.gradient_s) / (beside.crafting_s / beside.gradient_s)
    assert ratio == pytest.approx(8, rel=0.5)


def test_the_items_that_a_guard_is_fitted_on_by_hand(opened: tuple[Job, Classifier, Dataset]) -> None:
    """The example at the head of `fitting.py`; a choice has all candidates fitted, and one family none left out."""
    job, _, data = opened
    recipe = load_recipe("standard")
    sizes = {Split.HEADS: 1000, Split.COMBINER: 400, Split.CALIBRATE: 800, Split.TEST: 500}

    class Sized(Dataset):
        def places(self, split: Split) -> NDArray[np.int64]:
            return np.arange(sizes[split])

    sized = Sized(data.images[:1], data.labels[:1], data.hashes[:1])
    job = replace(job, recipe=recipe, craft_items=None)
    assert len(recipe.attacks) == 8
    assert FittingSize.of(job, sized, 4, 4) == FittingSize(21_600, 7_700, 15_200 + 5 * 1_800)
    chosen = FittingSize.of(replace(job, cost=2.0), sized, 6, 4)
    assert chosen.fitted == 15_200 + 5 * 3 * 1500 * 6 // 4
    alone = replace(job, recipe=replace(recipe, attacks=recipe.attacks[:1]))
    assert FittingSize.of(alone, sized, 4, 4).fitted == 4000 + 2 * 700


def test_a_fit_passes_about_the_items_that_were_forecast(
    opened: tuple[Job, Classifier, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds are items times measured speeds; the programs' are without the test split, which the report reads."""
    job, classifier, data = opened
    plain = {**tiny.RECIPE, "cascade": False, "detector": tiny.RECIPE["detector"][:2], "repair": []}
    job = replace(job, recipe=parse(plain, "plain"), craft_items=300)
    spec = classifier.spec
    run = CraftSetup(TorchModel(classifier.graph), tiny.GRID, spec.fingerprint, job.work.crafted, 0, workers=1)
    crafted = tuple(craft(run, learning_items(data).take(slice(300)), job.recipe.attacks))
    passed = {"gathered": 0, "read": 0, "fitted": 0}

    def counting(owner: type, method: str, name: str, items: Callable[..., int]) -> None:
        real = getattr(owner, method)

        def counted(self: Any, *given: Any, **options: Any) -> Any:
            passed[name] += items(*given)
            return real(self, *given, **options)

        monkeypatch.setattr(owner, method, counted)

    counting(EvidenceCache, "add", "gathered", lambda needs, keys, images: len(images))
    counting(Cascade, "read", "read", len)
    counting(Mahalanobis, "fit", "fitted", lambda given: len(given.negatives(Logits())) + given.count_attacked())
    fit_all(job, Prepared(classifier, data, crafted))
    programs = job.recipe.programs([tap.name for tap in classifier.taps])
    detectors = sum(len(own) for own in programs.values())
    forecast = FittingSize.of(job, data, detectors, detectors)
    assert passed["gathered"] == pytest.approx(forecast.gathered, rel=MAX_ITEMS_SHARE)
    assert passed["read"] == pytest.approx(forecast.read - len(data.places(Split.TEST)), rel=MAX_ITEMS_SHARE)
    # without a family there are fewer attacked items than with all
    assert forecast.fitted / 2 < passed["fitted"] <= forecast.fitted


def fit_all(job: Job, prepared: Prepared) -> None:
    """Fit, compile and calibrate, as a training does."""
    stages = Stages(Console(file=io.StringIO()))
    job, heads, choice, left_out = choose_and_fit(job, prepared, stages)
    programs = settled(prepared.programs(job), heads)
    files = compile_heads(job, prepared, programs, heads).files
    Calibrator(job, prepared.classifier, programs, files, prepared.data, choice).calibrate(prepared.crafted, left_out)


COST = Cost(0.0002, 0.0004, 330, 16.0, 50.0, 12.0, 2**29)


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (None, "about 66 s for the guard, which is not cut: attacks 16 s (330 items each), fitting 50 s, and what is"),
        (25.0, "about 66 s for the guard, which is not cut: attacks"),
        (1.0, "about 66 s for the guard, which is not cut: more than --minutes 1; the report will be the smallest"),
    ],
)
def test_the_time_is_told_by_the_minutes_given(
    minutes: float | None, words: str, opened: tuple[Job, Classifier, Dataset]
) -> None:
    said = dict(cost_lines(replace(opened[0], minutes=minutes), COST))
    assert said["time"].startswith(words)
    assert said["memory"] == "about 0.5 GiB"
    assert said["speed"].startswith("about 0.2 ms an item, 0.4 ms with its gradient")


def test_a_second_network_is_part_of_the_time(opened: tuple[Job, Classifier, Dataset]) -> None:
    said = dict(cost_lines(opened[0], COST, 600.0))
    assert said["time"].startswith("about 11 min for the guard")
    assert "second network 10 min" in said["time"]


def detector(name: str) -> Detector:
    return build_detector(name, ["relu"], {})


@pytest.mark.parametrize(
    ("backwards", "rows", "names", "words"),
    [
        (0, 0, ["mahalanobis"], "1 forward for mahalanobis"),
        (1, 0, ["saliency_classifier"], "2 forwards (1 + 1 backward) for saliency_classifier"),
        (2, 1, ["mahalanobis", "lid"], "4 forwards (1 + 2 backwards + 1 row) for mahalanobis, lid"),
        (0, 2, ["attribute_steering"], "at least 3 forwards (1 + 2 rows) for attribute_steering; what"),
    ],
)
def test_forwards_are_told_in_words(backwards: int, rows: int, names: list[str], words: str) -> None:
    assert forwards_text(backwards, rows, [detector(name) for name in names]).startswith(words)


def test_the_forwards_of_second_networks_are_told_too() -> None:
    told = forwards_text(0, 1, [detector("second_opinion")], 0.31)
    assert told == "2.31 forwards (1 + 1 row + 0.31 of second networks) for second_opinion"


class Saturated(nn.Module):
    """A sigmoid so steep that float32 rounds its slope to zero, before the last layer."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.inner, self.last, self.slope = tiny.image_model(), nn.Linear(3, 3), slope

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(torch.sigmoid(self.slope * self.inner(images)))
        return result


def saturated() -> nn.Module:
    return Saturated(1e6).eval()


def smooth() -> nn.Module:
    return Saturated(0.1).eval()


def test_a_saturated_model_is_refused() -> None:
    images, labels = tiny.data(64, seed=3)
    data = Dataset(images, labels, np.asarray([f"{i:064d}" for i in range(64)]))
    with pytest.raises(ModelError, match=r"input gradient is zero on all of 64 items.*give the float model"):
        gradient_text(open_model(Source(f"{__name__}:saturated", tiny.SHAPE)), data)
    said = gradient_text(open_model(Source(f"{__name__}:smooth", tiny.SHAPE)), data)
    assert said == "the answer changes with the input on 100% of 64 items"


class Logarithms(nn.Module):
    """Logarithms of 0, which the next step throws away: the answer is a number, its slope is none, in torch either."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.image_model()

    def forward(self, images: Tensor) -> Tensor:
        sizes = images * 0
        result: Tensor = self.inner(torch.where(sizes > 0, torch.log(sizes), images))
        return result


def logarithms() -> nn.Module:
    return Logarithms().eval()


def test_a_gradient_that_is_no_number_is_not_taken_for_none() -> None:
    images, labels = tiny.data(64, seed=3)
    data = Dataset(images, labels, np.asarray([f"{i:064d}" for i in range(64)]))
    with pytest.raises(ModelError, match=r"not a number, or infinite, on 64 of 64 items.*add a small number"):
        gradient_text(open_model(Source(f"{__name__}:logarithms", tiny.SHAPE)), data)
