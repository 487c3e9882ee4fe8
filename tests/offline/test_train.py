"""`guard train` from end to end on the tiny problem, and every way in which it stops before it writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.calibration import auroc
from guard.errors import BundleError, ConfigError, DataError, GuardError, ModelError, PromiseError
from guard.offline.data.attacked import Attacked
from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split, content_hashes
from guard.offline.detectors.detector import Head
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.findings.intervals import rejections_band
from guard.offline.job.job import MIN_SPLIT_ITEMS, Job, open_job
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.train import prepare, train
from guard.offline.training import calibrator
from guard.offline.training.calibrator import npz
from guard.offline.training.fit_fusion import fit_fusion
from guard.offline.training.fit_heads import FittingItems, fit_heads, load_heads, save_heads
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from tests.offline import tiny
from tests.offline.detectors.fitting import attack
from tests.offline.interruption import interrupted_at
from tests.spy import Call, spied

RATE = 0.05


# What it makes.


def test_the_bundle_is_whole_and_reads_its_own_samples(tiny_bundle: Bundle) -> None:
    again = Bundle.open(tiny_bundle.path)
    assert again.digest == tiny_bundle.digest
    runtime = Runtime.open(again, threads=1)
    runtime.self_check()
    assert len(again.samples.images) >= 8
    found = runtime.read(again.samples.images, complete=True)
    np.testing.assert_allclose(found.scores, again.samples.scores, rtol=1e-3, atol=1e-3)
    assert np.array_equal(found.p_value, again.samples.p_values)


def test_the_manifest_says_what_was_asked(tiny_bundle: Bundle, tiny_job: Job) -> None:
    manifest = tiny_bundle.manifest
    assert (manifest.reject_rate, manifest.flag_rate) == (tiny_job.reject_rate, tiny_job.flag_rate)
    assert manifest.recipe["name"] == "tiny"
    assert manifest.model.input.grid == tiny.GRID
    assert manifest.model.fingerprint == tiny.image_classifier().spec.fingerprint
    assert sum(manifest.provenance["splits"].values()) == 640
    assert manifest.provenance["splits"]["calibrate"] == tiny_bundle.calibration.items
    assert set(manifest.provenance["early_pass_share"].values()) == {0.0}
    assert {"torch", "onnxruntime", "python"} <= set(manifest.made_by)


def test_heads_combiner_calibration_and_test_share_no_item(tiny_bundle: Bundle, tiny_job: Job) -> None:
    classifier, data = open_job(tiny_job)
    parts = {split: set(data.part(split).hashes.tolist()) for split in Split}
    assert sum(map(len, parts.values())) == len(set(data.hashes.tolist())) == 640
    kept = json.loads((tiny_job.work.splits).read_text("utf-8"))
    assert kept == {value: split.value for split, values in parts.items() for value in values}
    # Only calibration items calibrate: read anew, they give the very risks that the bundle ranks by.
    runtime = Runtime.open(tiny_bundle, threads=1)
    again = read(runtime, data.part(Split.CALIBRATE).images)
    np.testing.assert_allclose(again.risk, tiny_bundle.calibration.clean_risks, rtol=0, atol=1e-5)
    assert classifier.spec.fingerprint == tiny_bundle.manifest.model.fingerprint


def test_clean_items_are_lost_as_promised_and_attacked_ones_are_found(
    tiny_bundle: Bundle, tiny_subject: OpenedGuard
) -> None:
    images, labels = tiny.data(500, seed=81)
    clean = read(tiny_subject.cascade, images).p_value <= RATE
    low, high = rejections_band(RATE, tiny_bundle.calibration.items, 500)
    assert low <= clean.sum() <= high
    attacked = attack(tiny_subject.classifier, torch.from_numpy(images), torch.from_numpy(labels)).numpy()
    fooled = read(tiny_subject.cascade, attacked).prediction != labels
    caught = read(tiny_subject.cascade, attacked).p_value <= RATE
    assert fooled.sum() > 100
    assert caught[fooled].mean() > 0.6


def test_a_batch_is_read_as_its_items_one_by_one(tiny_subject: OpenedGuard) -> None:
    images = tiny.data(60, seed=82)[0]
    whole, alone = read(tiny_subject.cascade, images), read(tiny_subject.cascade, images, batch=1)
    np.testing.assert_allclose(alone.scores, whole.scores, rtol=1e-4, atol=1e-4)
    for rate in (0.05, 0.1):
        assert np.array_equal(alone.p_value <= rate, whole.p_value <= rate)


def test_only_what_resuming_and_evaluating_need_is_left_beside_it(tiny_bundle: Bundle, tiny_job: Job) -> None:
    assert {path.name for path in tiny_job.work.path.iterdir()} == {
        "adaptive",
        "crafted",
        "heads",
        "job.json",
        "layout.json",
        "seconds.json",
        "splits.json",
    }
    assert {path.name for path in tiny_bundle.path.parent.iterdir()} == {
        "bundle",
        "bundle.work",
        "model.pt2",
        "data.npz",
    }


# Taken up again.


@dataclass(frozen=True)
class Resumed:
    """A training that was interrupted in the middle of crafting, and then ran again."""

    job: Job
    kept: dict[str, int]  # crafted files of the first run, and when they were written
    bundle: Bundle
    written: list[Call]  # of write_bundle, in the second run
    opened: list[Call]  # of Calibrator.opened


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """In another place than the tiny bundle, which was left alone."""
    job, silent = tiny.job(tmp_path_factory.mktemp("resumed"), threads=1), Stages(Console(file=io.StringIO()))
    with interrupted_at(3):
        train(job, silent)
    assert not job.out.exists()
    kept = crafted_files(job)
    with pytest.MonkeyPatch.context() as patch:
        written = spied(patch, calibrator, "write_bundle")
        opened = spied(patch, calibrator.Calibrator, "opened")
        return Resumed(job, kept, train(job, silent), written, opened)


def crafted_files(job: Job) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in job.work.crafted.folder.iterdir()}


def test_an_interrupted_run_ends_as_any_other_bit_for_bit(resumed: Resumed, tiny_bundle: Bundle) -> None:
    """Interrupted in the middle of crafting, then run again, in another place: the same bundle to the last bit."""
    assert len(resumed.kept) == 2
    assert crafted_files(resumed.job).items() >= resumed.kept.items()
    here, there = ({f.name: f.read_bytes() for f in b.path.iterdir()} for b in (resumed.bundle, tiny_bundle))
    assert [name for name in there if here.get(name) != there[name]] == []
    assert set(here) == set(there)
    assert resumed.bundle.digest == tiny_bundle.digest


def test_one_training_writes_one_bundle(resumed: Resumed) -> None:
    """And the cascade that was measured, in memory, reads as the bundle that was written from it, to the last bit."""
    assert [call.given["path"] for call in resumed.written] == [resumed.job.out]
    (guard,), bundle = [call.result for call in resumed.opened], resumed.bundle
    images = tiny.data(90, seed=3)[0]
    memory, served = (vars(read(one, images)) for one in (guard.cascade, Runtime.open(bundle).cascade))
    assert [name for name, value in memory.items() if not np.array_equal(value, served[name])] == []
    assert guard.identity == bundle.identity
    assert all(guard.graphs[p.name] == (bundle.path / p.file).read_bytes() for p in bundle.manifest.programs)


def test_arrays_are_written_the_same_every_time() -> None:
    arrays: Mapping[str, NDArray[Any]] = {"b": np.arange(3), "a": np.zeros((2, 2))}
    assert npz(arrays) == npz(dict(arrays))


def test_heads_survive_their_files(tiny_subject: OpenedGuard, tmp_path: Path) -> None:
    detectors = [d for ds in tiny_subject.programs.values() for d in ds]
    save_heads(tiny_subject.heads, WorkDirectory(tmp_path))
    again = load_heads(detectors, WorkDirectory(tmp_path))
    for name, head in tiny_subject.heads.items():
        for key, value in head.state_dict().items():
            assert torch.equal(again[name].state_dict()[key], value)
    (tmp_path / "heads" / "mahalanobis.npz").write_bytes(b"no")
    with pytest.raises(BundleError, match=r"mahalanobis\.npz"):
        load_heads(detectors, WorkDirectory(tmp_path))


# Labels teach.


def fused(
    heads: Mapping[str, Head], subject: OpenedGuard, *, clean: NDArray[np.float32], attacked: NDArray[np.float32]
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Risk of unit-space images after fitting the fusion on these, all in torch."""
    from guard.offline.programs.program import Program

    detectors = [d for ds in subject.programs.values() for d in ds]
    program = Program(subject.classifier, [heads[d.name] for d in detectors])

    def scores(images: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.no_grad():
            return program.scores(program.evidence(torch.from_numpy(images))).double().numpy()

    fusion = fit_fusion(scores(clean), scores(clean[:0]), Attacked(scores(attacked), ("fgsm",) * len(attacked)))
    return lambda images: fusion.risk(scores(images))


@pytest.mark.parametrize("swapped", [False, True])
def test_with_clean_and_attacked_swapped_nothing_is_learned(tiny_subject: OpenedGuard, *, swapped: bool) -> None:
    detectors = [d for ds in tiny_subject.programs.values() for d in ds]
    sets = []
    for seed in (91, 92, 93):
        images, labels = tiny.data(200, seed=seed)
        crafted = attack(tiny_subject.classifier, torch.from_numpy(images), torch.from_numpy(labels)).numpy()
        sets.append((images, crafted, labels))
    (heads_clean, heads_attacked, labels), (clean, attacked, _), (test_clean, test_attacked, _) = sets
    if swapped:
        heads_clean, heads_attacked = heads_attacked, heads_clean
        clean, attacked = attacked, clean
    heads = fit_heads(
        detectors,
        FittingItems(
            Dataset(heads_clean, labels, np.arange(200).astype(str)),
            heads_clean[:0],
            Attacked(heads_attacked, ("fgsm",) * 200),
        ),
        EvidenceCache(tiny_subject.classifier),
        seed=0,
        report=lambda text: None,
    )
    risk = fused(heads, tiny_subject, clean=clean, attacked=attacked)
    found = auroc(risk(test_clean), risk(test_attacked))
    assert found < 0.5 if swapped else found > 0.9


# Every way in which it stops.


def stops(job: Job, stages: Stages, kind: type[GuardError], *words: str) -> None:
    """With one line, and nothing at --out."""
    with pytest.raises(kind) as caught:
        train(job, stages)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not job.out.exists()
    assert not [path for path in job.out.parent.iterdir() if path.name.startswith(f".{job.out.name}.")]


def with_data(job: Job, **arrays: NDArray[Any]) -> Job:
    np.savez(job.data, **arrays)  # type: ignore[arg-type]
    return job


def test_out_exists(problem: Path, stages: Stages) -> None:
    job = tiny.job(problem)
    job.out.mkdir()
    (job.out / "mine").write_text("x")
    with pytest.raises(BundleError, match="exists"):
        train(job, stages)
    assert [path.name for path in job.out.iterdir()] == ["mine"]
    assert not job.work.path.exists()


def test_labels_that_the_model_does_not_have(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    labels[17] = 3
    stops(with_data(tiny.job(problem), images=images, labels=labels), stages, DataError, "item 17", "label 3", "0 to 2")


def test_negative_labels(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    stops(with_data(tiny.job(problem), images=images, labels=labels - 1), stages, DataError, "label -1")


def test_no_labels(problem: Path, stages: Stages) -> None:
    stops(with_data(tiny.job(problem), images=tiny.data(640)[0]), stages, DataError, "has no labels")


def test_nan(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    images[5, 0, 0, 0] = np.nan
    stops(with_data(tiny.job(problem), images=images, labels=labels), stages, DataError, "item 5", "finite")


def test_items_of_another_shape(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    stops(with_data(tiny.job(problem), images=images[..., 1:], labels=labels), stages, ModelError, "[1, 8, 7]")


def test_values_outside_the_range(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    stops(with_data(tiny.job(problem), images=images * 255, labels=labels), stages, DataError, "--range")


def test_labels_of_another_order_teach_nothing_to_attack(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    wrong = (labels + 1) % tiny.CLASSES
    job = with_data(tiny.job(problem), images=images, labels=wrong)
    stops(job, stages, DataError, "with labels - 1 it would be", "--accept-accuracy")
    assert not job.work.path.exists()
    with pytest.raises(DataError) as caught:
        train(replace(job, accept_accuracy=True), stages)
    assert "--accept-accuracy" not in str(caught.value)


def test_test_data_of_another_order_is_told_by_its_own_name(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(60, seed=12)
    np.savez(problem / "test.npz", images=images, labels=(labels + 1) % tiny.CLASSES)
    stops(
        tiny.job(problem, test=problem / "test.npz"), stages, DataError, "test.npz: the model is right on", "labels - 1"
    )


def test_too_few_items_for_the_rate_says_how_many(problem: Path, stages: Stages) -> None:
    stops(tiny.job(problem, reject_rate=0.001), stages, PromiseError, "reject rate = 0.001", "it takes 999")
    stops(tiny.job(problem, reject_rate=0.2), stages, PromiseError, "--flag-rate 0.1 is below --reject-rate 0.2")


def test_too_few_items_for_a_split(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(90, seed=7)
    job = with_data(tiny.job(problem, reject_rate=0.2, flag_rate=0.2), images=images, labels=labels)
    stops(job, stages, DataError, f"at least {MIN_SPLIT_ITEMS}")


def test_a_recipe_whose_tables_do_not_exist(problem: Path, stages: Stages) -> None:
    recipe = replace(tiny.recipe(), detectors=({"name": "mahalanobi", "program": "screen"},))
    stops(tiny.job(problem, recipe=recipe), stages, ConfigError, "mahalanobi")


def test_a_recipe_without_adaptive_budgets_is_no_report(problem: Path, stages: Stages) -> None:
    """And that is said before an hour of crafting, not after it."""
    job = tiny.job(problem, recipe=replace(tiny.recipe(), adaptive_budgets=()))
    with pytest.raises((ConfigError, DataError), match="adaptive"):
        prepare(job, stages)
    assert not job.work.crafted.folder.exists()


# Test data of its own.


def test_a_test_file_of_its_own_is_the_test_split(problem: Path) -> None:
    job = tiny.job(problem, test=tiny.write_data(problem / "test.npz", items=90, seed=12))
    _, data = open_job(job)
    own = content_hashes(tiny.data(90, seed=12)[0])
    assert set(data.part(Split.TEST).hashes.tolist()) == set(own.tolist())
    shares = [len(data.part(split)) / 640 for split in (Split.HEADS, Split.COMBINER, Split.CALIBRATE)]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.06)


def test_test_data_that_was_trained_on_is_refused(problem: Path, stages: Stages) -> None:
    images, labels = tiny.data(640, seed=7)
    np.savez(problem / "test.npz", images=images[:50], labels=labels[:50])
    stops(tiny.job(problem, test=problem / "test.npz"), stages, DataError, "share 50 items", "held out")
