"""A table of mixed features as a job: what is said of it, and that all that is crafted on it is valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guard.errors import DataError, ModelError
from guard.feature_values import check_values
from guard.offline.adversary.descent import adaptive
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.data.dataset import Dataset
from guard.offline.data.grid import grid_for
from guard.offline.job.accuracy import check_accuracy
from guard.offline.job.feature_file import load_features
from guard.offline.job.job import Job, open_job
from guard.offline.job.recipe import load_recipe
from guard.offline.model.open_model import Source, open_model
from guard.offline.preflight.feature_lines import feature_lines
from guard.offline.work.store import ResultStore
from guard.value_faults import value_fault
from tests.offline import loans
from tests.onnx_files import quiet

ITEMS = 400


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Any, Any]:
    folder = tmp_path_factory.mktemp("loans")
    job = Job(
        model=f"{loans.__name__}:model",
        data=loans.write_csv(folder / "data.csv", ITEMS, seed=1),
        out=folder / "bundle",
        recipe=load_recipe("tabular"),
        features=load_features(loans.write_features(folder / "features.toml")),
        test=loans.write_csv(folder / "test.csv", 60, 2, ("label", *reversed(loans.COLUMNS))),
    )
    return job, *open_job(job)


def test_what_is_taken_for_what_is_said(opened: tuple[Job, Any, Any]) -> None:
    job, classifier, data = opened
    said = [text for _, text in feature_lines(job, classifier, data)]
    assert said[0].startswith("1 numeric, 3 integer, 2 categorical, 1 binary, one-hot group 'channel' of 3 columns")
    assert said[0].endswith("immutable: 'age'")
    assert "trade: categorical, baker, clerk, driver, farmer, nurse, smith" in said
    assert "owner: binary, no, yes" in said
    assert classifier.kind.name == "tabular"
    values, labels = loans.loans(60, 2)
    held_out = data.groups == "test"
    wire = classifier.spec.input.box.from_unit(data.images[held_out])
    inside = (np.abs(wire - values) < 1e-3).all(axis=1)
    assert inside.mean() > 0.9, "the columns of the other file are in the same order; what lies beyond is cut"
    assert (data.labels[held_out] == labels).all()


def test_whatever_is_crafted_is_valid(opened: tuple[Job, Any, Any], tmp_path: Path) -> None:
    _, classifier, data = opened
    spec, grid = classifier.spec.input, grid_for(classifier.spec.input)
    run = CraftSetup(TorchModel(classifier.graph), grid, classifier.spec.fingerprint, ResultStore(tmp_path), 0)
    recipe = load_recipe("tabular")
    few = [replace(a, steps=10) if hasattr(a, "steps") else a for a in (*recipe.attacks, *recipe.left_out)]
    for found in craft(run, data.take(slice(32)), few):
        assert len(found) > 5, found.attack
        clean = spec.box.from_unit(found.clean)
        for images in (found.attacked, found.noise):
            wire = spec.box.from_unit(images)
            check_values(wire, spec.features, found.attack, steps=True)
            assert (wire[:, 0] == clean[:, 0]).all(), "age is immutable"
        changed = (spec.box.from_unit(found.attacked)[:, 4:7] != clean[:, 4:7]).any()
        assert found.name == "tabular_evasion" or not changed, "codes in embeddings have no gradient"


def test_the_attacker_who_knows_the_guard_keeps_to_the_features(opened: tuple[Job, Any, Any]) -> None:
    _, classifier, data = opened
    spec, grid = classifier.spec.input, grid_for(classifier.spec.input)

    def known(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return classifier(images), (images[:, 1:2] - images[:, 2:3])

    images, labels = torch.from_numpy(data.images[:24]), torch.from_numpy(data.labels[:24])
    generator = torch.Generator().manual_seed(0)
    found = adaptive(
        known, images, labels, budget=0.1, steps=6, generator=generator, grid=grid, method="selective"
    ).images.numpy()
    check_values(spec.box.from_unit(found), spec.features, "adaptive", steps=True)
    moved = np.abs(spec.box.from_unit(found) - spec.box.from_unit(data.images[:24]))
    spans = np.asarray([feature.span for feature in spec.features])
    assert (moved / spans <= 0.1 + 1e-5).all()
    assert (moved[:, [0, *range(4, 10)]] == 0).all()
    assert (moved[:, 1:4] > 0).any(axis=0).all()


def test_a_model_that_is_no_better_than_chance_is_told_so_and_not_asked_what_it_cannot_take(
    opened: tuple[Job, Any, Any],
) -> None:
    _, classifier, data = opened
    mixed = replace(data, labels=np.random.default_rng(0).permutation(data.labels))
    with pytest.raises(DataError, match="no better than chance"):
        check_accuracy(classifier, mixed, accepted=False)
    assert check_accuracy(classifier, mixed, accepted=True).is_doubtful
    assert not check_accuracy(classifier, data, accepted=False).is_doubtful


@pytest.mark.parametrize(("low", "high"), [(0.0, 9000.0), (-1.0, 1.0)])
def test_categories_that_are_not_named_are_no_raw_error(low: float, high: float) -> None:
    with pytest.raises(ModelError, match=r"cannot be asked about all values of its range: .*--preset tabular"):
        open_model(Source(f"{loans.__name__}:model", (len(loans.COLUMNS),), (low,), (high,)))


def test_categories_of_a_file_that_are_not_named_are_told_with_their_remedy(tmp_path: Path) -> None:
    with quiet():
        file = loans.write_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"out of data bounds.*--preset tabular"):
        open_model(Source(str(file), (len(loans.COLUMNS),), (0.0,), (9000.0,)))


def test_likely_mistakes_that_a_model_cannot_be_asked_about_are_left_out() -> None:
    values, labels = loans.loans(200, 1)
    high = tuple(float(value) for value in values.max(axis=0))
    classifier = open_model(Source(f"{loans.__name__}:model", (len(loans.COLUMNS),), (0.0,) * len(high), high))
    data = Dataset(values / np.asarray(high, np.float32), labels, np.asarray([f"{i:064d}" for i in range(200)]), "rows")
    assert not check_accuracy(classifier, data, accepted=False).is_doubtful
    mixed = replace(data, labels=np.random.default_rng(0).permutation(labels))
    assert check_accuracy(classifier, mixed, accepted=True).is_chance


def test_codes_that_a_table_holds_as_numbers_are_taken_as_far_as_the_model_looks_them_up(tmp_path: Path) -> None:
    values, labels = loans.loans(ITEMS, 1)
    names = ",".join((*loans.COLUMNS, "label"))
    kept = values[values[:, 4] < 4], labels[values[:, 4] < 4]  # of two trades the table has no row
    rows = [",".join(map(str, (*row.tolist(), label))) for row, label in zip(*kept, strict=True)]
    (tmp_path / "codes.csv").write_text("\n".join([names, *(row.replace(".0,", ",") for row in rows)]))
    job = Job(f"{loans.__name__}:model", tmp_path / "codes.csv", tmp_path / "out", load_recipe("tabular"))
    classifier, data = open_job(job)
    age, _, _, _, trade, region, *_ = classifier.spec.input.features
    assert [(one.kind, one.high, one.least, one.most) for one in (trade, region)] == [
        ("integer", 3, 0, 5),
        ("integer", 3, 0, 3),
    ]
    assert (age.least, age.most) == (None, None)
    assert "'trade', 'region'; codes are stated with kind = 'categorical'" in " ".join(
        text for about, text in feature_lines(job, classifier, data) if about == "features"
    )
    wire = values[:3].copy()
    wire[1, 4] = 5
    assert value_fault(wire, classifier.spec.input) is None
    wire[1, 4] = 6
    assert "item 1 has 6 for 'trade'; wanted a number from 0 on up to 5" in str(
        value_fault(wire, classifier.spec.input)
    )


def test_pictures_are_no_table(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((40, 8, 8, 1), np.uint8), labels=np.arange(40) % 2)
    job = Job("tests.offline.tiny:image_model", tmp_path / "data.npz", tmp_path / "out", load_recipe("tabular"))
    with pytest.raises(DataError, match=r"items have 3 axes, and recipe tabular is for tables"):
        open_job(job)
