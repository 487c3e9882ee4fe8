"""Recalibration of a real bundle from a store: rates come back, attacks in the sample cost what was said, no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard import cli
from guard import recalibrate as recalibrate_module
from guard.bundle import SIGNATURE, Bundle
from guard.errors import BundleError, ConfigError, DataError, GuardError, PromiseError
from guard.recalibrate import Recalibrated, recalibrate
from guard.runtime import Runtime
from guard.traffic_sample import SampledItems, SampleSpec, SampleWriter, TrafficSample, WrittenShard
from tests.serve import tiny_bundle

pytestmark = pytest.mark.slow

LIFT = np.float32(0.03)  # the traffic is brighter than what the bundle was calibrated on


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("recalibrate") / "bundle")


def traffic(items: int, seed: int) -> NDArray[np.float32]:
    return (tiny_bundle.clean(items, seed=seed) + LIFT).clip(0, 1).astype(np.float32)


def attacked(items: int, seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).uniform(-0.15, 0.15, (items, *tiny_bundle.SHAPE))
    return (tiny_bundle.striped(items) + noise).clip(0, 1).astype(np.float32)


def store(
    folder: Path,
    parent: Bundle,
    images: NDArray[np.float32],
    *,
    mark: bool = True,
    shards: int = 1,
    model: str = "tiny",
) -> Path:
    """Write images as the serving side would have sampled them."""
    readings = Runtime.open(parent, threads=1).read(images)
    spec = SampleSpec.of(parent.manifest.model.input, share=1.0, bundle=parent.digest, model=model)
    writer = SampleWriter(folder, spec, np.random.default_rng(0), shard_bytes=1 << 30)
    rejected = readings.p_value <= parent.manifest.reject_rate
    for index in np.array_split(np.flatnonzero(writer.draw(len(images))), shards):
        writer.add(SampledItems(images[index], rejected[index], readings.p_value[index], index.astype(float)))
        writer.flush()
    if not mark:
        file = folder / "sample.json"
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "unbiased": False}), encoding="utf-8")
    return folder


def calibrated(parent: Bundle, folder: Path, out: Path, **shares: float) -> Recalibrated:
    given = {"unnoticed_share": 0.01, "max_rejected_share": 0.2, **shares}
    return recalibrate(parent, folder, out, threads=1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02])
def test_false_alarms_come_back_whatever_share_of_attacks_went_unnoticed(
    parent: Bundle, tmp_path: Path, share: float
) -> None:
    clean = traffic(6000, seed=50)
    images = np.where(
        (np.random.default_rng(1).random(6000) < share)[:, None, None, None], attacked(6000, seed=2), clean
    )
    told = calibrated(parent, store(tmp_path / "store", parent, images), tmp_path / "new", unnoticed_share=0.02)
    fresh, attacks = traffic(20_000, seed=51), attacked(500, seed=3)
    before, after = (Runtime.open(one, threads=1) for one in (parent, told.bundle))
    for action, rate in (("reject", 0.01), ("flag", 0.05)):
        assert (before.read(fresh).p_value <= rate).mean() > 1.5 * rate
        realised = (after.read(fresh).p_value <= rate).mean()
        moved = told.moved[action]
        error = 3 * moved.deviation
        assert moved.promised - error <= realised <= moved.at_most + error
        assert (after.read(attacks).p_value <= rate).mean() > 0.99
    after.self_check()


def test_the_new_bundle_knows_where_it_comes_from_and_bears_no_signature(parent: Bundle, tmp_path: Path) -> None:
    signed = tmp_path / "parent"
    shutil.copytree(parent.path, signed)
    (signed / SIGNATURE).write_text("{}", encoding="utf-8")
    told = calibrated(Bundle.open(signed), store(tmp_path / "store", parent, traffic(3000, seed=52)), tmp_path / "new")
    new = Bundle.open(tmp_path / "new")
    facts = new.manifest.provenance["calibrated"]
    assert facts["parent"] == parent.digest
    assert facts["items"] == new.calibration.items == told.items
    assert facts["rates"]["reject"]["at_most"] == pytest.approx(0.02)
    assert not (new.path / SIGNATURE).exists()
    assert new.identity != parent.identity
    assert new.manifest.programs == parent.manifest.programs


def test_the_ranking_items_are_none_of_those_that_scale(parent: Bundle, tmp_path: Path) -> None:
    told = calibrated(parent, store(tmp_path / "store", parent, traffic(3000, seed=52)), tmp_path / "new")
    assert told.repeats == 0
    assert 1800 < told.items + told.left_out < 2200


def test_near_copies_count_once(parent: Bundle, tmp_path: Path) -> None:
    images = traffic(1500, seed=53)
    twice = np.concatenate([images, images])[np.random.default_rng(0).permutation(3000)]
    told = calibrated(parent, store(tmp_path / "store", parent, twice), tmp_path / "new")
    assert told.repeats == 1500


def test_traffic_that_fills_little_of_its_range_counts(parent: Bundle, tmp_path: Path) -> None:
    """The parent does not say how near its items are, so that the sample's own tell; the new bundle does say it."""
    low = (0.5 + 0.05 * (traffic(3000, seed=62) - 0.5)).astype(np.float32)
    folder = store(tmp_path / "store", parent, low)
    told = calibrated(parent, folder, tmp_path / "new", max_rejected_share=1.0)
    known = Bundle.open(tmp_path / "new").calibration.nearness
    assert told.repeats < 100
    assert known is not None
    assert known.fresh.shape == (told.items,)
    assert known.distance < 0.05
    still = np.repeat(traffic(30, seed=63), 40, axis=0)
    with pytest.raises(PromiseError, match=r"sample of 30 items.*\(1170 near-copies of earlier items and 0 unreadable"):
        calibrated(parent, store(tmp_path / "still", parent, still), tmp_path / "another")


def test_what_cannot_keep_a_promise_is_refused(parent: Bundle, tmp_path: Path) -> None:
    calm = traffic(3000, seed=54)
    wave = np.concatenate([calm[:2000], attacked(300, seed=1), calm[2000:]])
    mixed = np.where((np.random.default_rng(0).random(3000) < 0.4)[:, None, None, None], attacked(3000, seed=4), calm)
    cases: dict[str, tuple[NDArray[np.float32], dict[str, bool], type[GuardError], str]] = {
        "small": (calm[:120], {}, PromiseError, "reject_rate = 0.01 cannot be promised with a sample of 120"),
        "unmarked": (calm, {"mark": False}, DataError, "not marked as an unbiased sample"),
        "wave": (wave, {}, DataError, "changes within itself"),
        "mixed": (mixed, {}, DataError, "the parent rejects 4. % of the sample"),
    }
    for name, (images, mark, kind, words) in cases.items():
        folder = store(tmp_path / name, parent, images, **mark)
        with pytest.raises(kind, match=words):
            calibrated(parent, folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_ways_to_ask_wrongly(parent: Bundle, tmp_path: Path) -> None:
    folder = store(tmp_path / "store", parent, traffic(3000, seed=55))
    with pytest.raises(BundleError, match="exists"):
        calibrated(parent, folder, parent.path)
    for shares in ({"unnoticed_share": -0.1}, {"unnoticed_share": 0.5}, {"max_rejected_share": 0.0}):
        with pytest.raises(ConfigError, match="wanted a share"):
            calibrated(parent, folder, tmp_path / "new", **shares)
    other = tiny_bundle.make(tmp_path / "bytes", datatype="UINT8")
    with pytest.raises(DataError, match=r"holds items \[1, 4, 4\] of FP32"):
        calibrated(other, folder, tmp_path / "new")
    closed = tmp_path / "closed"
    shutil.copytree(parent.path, closed)
    (closed / "answer.npz").write_bytes(b"")
    with pytest.raises(BundleError, match="closed model's answers"):
        calibrated(replace(parent, path=closed), folder, tmp_path / "new")


def test_items_without_numbers_are_counted_and_left_out(parent: Bundle, tmp_path: Path) -> None:
    images = traffic(3000, seed=56)
    images[::100] = np.nan
    told = calibrated(parent, store(tmp_path / "store", parent, images), tmp_path / "new")
    assert told.unreadable + told.repeats == 30
    assert Bundle.open(tmp_path / "new").calibration.items == told.items


def test_a_store_that_the_guard_goes_on_with(parent: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed before it was read is passed over; between two readings the numbers would mean other items."""
    images = traffic(3000, seed=60)
    folder = store(tmp_path / "store", parent, images, shards=10)
    read = TrafficSample.read

    def removing(sample: TrafficSample, file: Path) -> WrittenShard | None:
        if file.name == "shard-00000001.npz":
            (folder / "shard-00000002.npz").unlink(missing_ok=True)
        return read(sample, file)

    with monkeypatch.context() as patch:
        patch.setattr(TrafficSample, "read", removing)
        told = calibrated(parent, folder, tmp_path / "new")
    rest = store(tmp_path / "rest", parent, np.delete(images, slice(300, 600), axis=0))
    assert told.gone == 1
    assert np.array_equal(
        told.bundle.calibration.clean_risks, calibrated(parent, rest, tmp_path / "same").bundle.calibration.clean_risks
    )
    ranked = recalibrate_module.ranked
    for change in (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes())):

        def changed(*given: Any, change: Callable[[Path], object] = change) -> Any:
            file = folder / "shard-00000003.npz"
            os.utime(file, (1, 1))
            change(file)
            return ranked(*given)

        monkeypatch.setattr(recalibrate_module, "ranked", changed)
        with pytest.raises(DataError, match=r"shard-00000003\.npz was removed or replaced .* copy the folder first"):
            calibrated(parent, folder, tmp_path / "another")
        shutil.copyfile(folder / "shard-00000004.npz", folder / "shard-00000003.npz")
    assert not (tmp_path / "another").exists()


def test_a_sample_of_another_model_is_refused(parent: Bundle, tmp_path: Path) -> None:
    folder = store(tmp_path / "store", parent, traffic(3000, seed=61), model="another")
    with pytest.raises(DataError, match=r"traffic of model 'another', .* for 'tiny'.*--other-model"):
        calibrated(parent, folder, tmp_path / "new")
    code = cli.run(["calibrate", str(parent.path), "--from", str(folder), "--out", str(tmp_path / "new")])
    assert code != 0
    told = recalibrate(
        parent, folder, tmp_path / "new", threads=1, unnoticed_share=0.01, max_rejected_share=0.2, other_model=True
    )
    assert told.items > 1000


def test_the_command_says_how_far_rates_moved(
    parent: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store(tmp_path / "store", parent, traffic(3000, seed=57))
    new = tmp_path / "new"
    code = cli.run(["calibrate", str(parent.path), "--from", str(folder), "--out", str(new), "--max-rejected", "0.2"])
    said = capsys.readouterr().out
    assert code == 0
    assert "reject    promised 1 %; the parent takes" in said
    assert "1 % to 2 % of clean items" in said
    assert "no signature" in said
    assert cli.run(["calibrate", str(parent.path), "--from", str(tmp_path), "--out", str(new)]) != 0


def test_it_needs_no_torch(parent: Bundle, tmp_path: Path) -> None:
    folder = store(tmp_path / "store", parent, traffic(3000, seed=58))
    program = (
        "import sys; from guard import cli; code = cli.run(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'scipy', 'onnx')))"
    )
    arguments = ["calibrate", str(parent.path), "--from", str(folder), "--out", str(tmp_path / "new")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--max-rejected", "0.2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
