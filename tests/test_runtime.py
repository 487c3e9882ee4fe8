"""The one path from an image to a p-value."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from guard.bundle import Bundle, write_bundle
from guard.calibration import Band, cascade_risk, jitter
from guard.errors import BundleError, DataError, DeviceError
from guard.runtime import Readings, Runtime, Session, onnxruntime
from tests.serve import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("runtime") / "bundle")


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return Runtime(bundle, threads=1)


def mixed() -> NDArray[Any]:
    """Ordinary items, and some that either program rejects."""
    parts = [tiny_bundle.clean(40, seed=21), tiny_bundle.bright(3), tiny_bundle.striped(3)]
    return np.concatenate(parts)[np.random.default_rng(0).permutation(46)]


def same(a: Readings, b: Readings) -> None:
    for name in ("logits", "risk", "p_value", "program"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-6), name
    for name in ("scores", "detector_p"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-6, equal_nan=True), name


def test_it_agrees_with_its_own_samples(runtime: Runtime) -> None:
    runtime.self_check()


def test_scores_are_what_the_detectors_say(runtime: Runtime) -> None:
    found = runtime.read(mixed(), complete=True)
    assert np.allclose(found.scores, tiny_bundle.python_scores(mixed()), atol=1e-6)
    matrix, bias = tiny_bundle.weights()
    assert np.allclose(found.logits, mixed().reshape(46, -1) @ matrix + bias, atol=1e-4)
    assert np.array_equal(found.prediction, found.logits.argmax(axis=1))


def test_risk_and_p_follow_from_scores_alone(runtime: Runtime) -> None:
    found, calibration = runtime.read(mixed(), complete=True), runtime.calibration
    first, both = calibration.fusions[0].risk(found.scores[:, :1]), calibration.fusions[1].risk(found.scores)
    early = first > calibration.bands[0].high
    by_hand = np.where(early, cascade_risk(2, first), cascade_risk(1, both)) + jitter(mixed())
    assert np.array_equal(found.risk, by_hand)
    assert np.array_equal(found.p_value, calibration.p_value(by_hand))
    assert np.array_equal(found.program, np.where(early, 0, 1))
    assert 0 < early.sum() < 46


def test_complete_changes_neither_risk_nor_p(runtime: Runtime) -> None:
    stopped, complete = runtime.read(mixed()), runtime.read(mixed(), complete=True)
    for name in ("logits", "risk", "p_value", "program"):
        assert np.array_equal(getattr(stopped, name), getattr(complete, name)), name
    ran = ~np.isnan(stopped.scores)
    assert np.array_equal(stopped.scores[ran], complete.scores[ran])
    assert not np.isnan(complete.scores).any()


def test_detectors_that_did_not_run_read_null_and_never_one(runtime: Runtime) -> None:
    found = runtime.read(mixed())
    early = found.program == 0
    assert early.any()
    assert np.isnan(found.scores[early, 1]).all()
    assert np.isnan(found.detector_p[early, 1]).all()
    assert not np.isnan(found.detector_p[early, 0]).any()
    assert not np.isnan(found.detector_p[~early]).any()


def test_later_programs_see_only_the_undecided(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, seen = Runtime(bundle, threads=1), []
    real = runtime.sessions[1].run

    def run(outputs: Sequence[str], inputs: NDArray[Any]) -> list[NDArray[Any]]:
        seen.append(len(inputs))
        return real(outputs, inputs)

    monkeypatch.setattr(runtime.sessions[1], "run", run)
    found = runtime.read(mixed())
    assert seen == [int((found.program == 1).sum())]
    runtime.read(tiny_bundle.bright(4))
    assert len(seen) == 1, "nothing was left to look at"


@pytest.mark.parametrize("complete", [False, True], ids=["cascade", "complete"])
def test_an_item_does_not_depend_on_its_batch(runtime: Runtime, *, complete: bool) -> None:
    images = mixed()
    whole = runtime.read(images, complete=complete)
    for size in (1, 5):
        for start in range(0, len(images), size):
            part = runtime.read(images[start : start + size], complete=complete)
            same(part, whole.rows(start, start + size))
    order = np.random.default_rng(1).permutation(len(images))
    same(runtime.read(images[order], complete=complete).rows(0, 1), whole.rows(order[0], order[0] + 1))
    padded = runtime.read(np.concatenate([images[:3], np.zeros_like(images[:5])]), complete=complete)
    same(padded.rows(0, 3), whole.rows(0, 3))


def test_no_items_are_no_readings(runtime: Runtime) -> None:
    found = runtime.read(mixed()[:0])
    assert found.p_value.shape == (0,)
    assert found.scores.shape == (0, 2)


def test_an_early_pass_is_the_safest_of_all(runtime: Runtime) -> None:
    """With a lower band, what `screen` passes is less risky than whatever `interpret` saw."""
    images = mixed()
    first = runtime.calibration.fusions[0].risk(runtime.read(images, complete=True).scores[:, :1])
    banded = replace(runtime.calibration, bands=(Band(float(np.median(first)), runtime.calibration.bands[0].high),))
    found = runtime.with_calibration(banded).read(images)
    passed = np.isnan(found.scores[:, 1]) & (first < np.median(first))
    assert passed.sum() == 23
    assert found.risk[passed].max() < found.risk[~passed].min()
    assert not np.array_equal(found.risk, runtime.read(images).risk)
    assert runtime.calibration.bands[0].low == -np.inf, "the runtime that it came from is as it was"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_the_gravest(runtime: Runtime, value: float) -> None:
    images = tiny_bundle.ordinary(3)
    images[1, 0, 0, 0] = value
    found = runtime.read(images)
    assert found.p_value[1] == 1 / (runtime.calibration.items + 1)
    assert (found.p_value[[0, 2]] > 0.1).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 1, 4, 5), np.float32), r"\[2, 1, 4, 5\].*\[item, 1, 4, 4\]"),
        (np.zeros((1, 4, 4), np.float32), r"\[1, 4, 4\]"),
        (np.zeros((2, 16), np.float32), r"\[2, 16\]"),
        (np.zeros((2, 1, 4, 4)), "float64.*float32"),
        (np.zeros((2, 1, 4, 4), np.uint8), "uint8.*FP32"),
    ],
    ids=["width", "no item axis", "flat", "double", "bytes"],
)  # fmt: skip
def test_another_shape_or_type(runtime: Runtime, images: NDArray[Any], words: str) -> None:
    for call in (runtime.read, lambda wrong: runtime.repair(wrong, "steps")):
        with pytest.raises(DataError, match=words):
            call(images)


def test_inputs_are_never_changed(runtime: Runtime) -> None:
    images = mixed()
    runtime.read(images)
    runtime.repair(images, "steps")
    assert np.array_equal(images, mixed())


def test_repair(runtime: Runtime) -> None:
    cleaned = runtime.repair(mixed(), "steps")
    assert np.allclose(cleaned, np.rint(mixed() * 8) / 8, atol=1e-6)
    assert cleaned.dtype == np.float32
    with pytest.raises(BundleError, match="'median'; it has: steps"):
        runtime.repair(mixed(), "median")


def test_uint8_models(tmp_path: Path) -> None:
    runtime = Runtime(tiny_bundle.make(tmp_path / "bytes", datatype="UINT8"), threads=1)
    runtime.self_check()
    images = tiny_bundle.as_wire(mixed(), "UINT8")
    assert runtime.repair(images, "steps").dtype == np.uint8
    assert np.allclose(
        runtime.read(images, complete=True).scores,
        tiny_bundle.python_scores((images / 255).astype(np.float32)),
        atol=1e-5,
    )


def test_the_widest_program_counts(runtime: Runtime) -> None:
    assert runtime.rows_per_item == 2


# A bundle that is not what it says.


def altered(bundle: Bundle, path: Path, name: str, content: bytes) -> Bundle:
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    return write_bundle(path, bundle.manifest, {**files, name: content})


def test_the_self_check_finds_another_model(bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(bundle.path / "screen.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "matrix":
            weights = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "matrix"))
    runtime = Runtime(altered(bundle, tmp_path / "other", "screen.onnx", graph.SerializeToString()), threads=1)
    with pytest.raises(BundleError, match="self-check: the model's outputs differ"):
        runtime.self_check()


def test_the_self_check_finds_other_verdicts(bundle: Bundle, runtime: Runtime) -> None:
    calmer = replace(runtime.calibration, clean_risks=runtime.calibration.clean_risks + 2)
    with pytest.raises(BundleError, match="got another verdict"):
        runtime.with_calibration(calmer).self_check()


@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "text", "half"])
def test_a_program_that_is_no_graph(bundle: Bundle, tmp_path: Path, content: bytes | None) -> None:
    whole = (bundle.path / "screen.onnx").read_bytes()
    spoilt = altered(bundle, tmp_path / "spoilt", "screen.onnx", whole[:200] if content is None else content)
    with pytest.raises(BundleError, match=r"cannot load screen\.onnx") as caught:
        Runtime(spoilt, threads=1)
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_or_gives_something_else(bundle: Bundle, tmp_path: Path) -> None:
    plain = altered(bundle, tmp_path / "plain", "screen.onnx", tiny_bundle.classifier())
    with pytest.raises(BundleError, match="gives no scores"):
        Runtime(plain, threads=1)
    other = replace(bundle.manifest.model, input=replace(bundle.manifest.model.input, shape=(1, 4, 5)))
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    wider = write_bundle(tmp_path / "wider", replace(bundle.manifest, model=other), files)
    with pytest.raises(BundleError, match=r"screen\.onnx takes"):
        Runtime(wider, threads=1)


@pytest.mark.parametrize(
    ("detectors", "words"),
    [
        ([("brightness", "roughness")], r"screen\.onnx gives 1 scores an item, the manifest says 2"),
        ([("brightness",)], "ranks brightness, roughness, the manifest's programs have brightness"),
        ([("roughness",), ("brightness",)], "programs have roughness, brightness"),
    ],
    ids=["wider", "fewer", "in another order"],
)
def test_a_calibration_for_other_programs(
    bundle: Bundle, tmp_path: Path, detectors: list[tuple[str, ...]], words: str
) -> None:
    programs = tuple(
        replace(program, detectors=names) for program, names in zip(bundle.manifest.programs, detectors, strict=False)
    )
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    other = write_bundle(tmp_path / "other", replace(bundle.manifest, programs=programs), files)
    with pytest.raises(BundleError, match=words):
        Runtime(other, threads=1)


# Devices.


def test_no_silent_fall_back_to_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"inference-guard\[gpu\]"):
        Session(bundle.path / "screen.onnx", device="cuda", threads=1)


@pytest.mark.parametrize(
    ("installed", "words"),
    [((), r"inference-guard\[cpu\]"), (("onnxruntime", "onnxruntime-gpu"), "overwrite each other")],
    ids=["none", "both"],
)
def test_exactly_one_onnx_runtime(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], words: str) -> None:
    from importlib.metadata import PackageNotFoundError

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(DeviceError, match=words):
        onnxruntime()


def test_a_bundle_that_vanishes_while_it_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy.path / "screen.onnx").unlink()
    with pytest.raises(BundleError, match=r"screen\.onnx"):
        Runtime(copy, threads=1)
