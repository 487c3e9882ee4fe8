"""The one path from an image to a p-value."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from guard import container
from guard.bundle import Bundle, write_bundle
from guard.calibration import Band
from guard.cascade import Readings, cascade_risk, jitter
from guard.errors import BundleError, DataError, DeviceError
from guard.runtime import Repaired, Runtime, divided
from guard.session import CudaOptions, Device, Session, onnxruntime, providers
from tests.serve import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("runtime") / "bundle")


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return Runtime.open(bundle, threads=1)


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
    runtime, seen = Runtime.open(bundle, threads=1), []
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
    found = runtime.cascade.with_calibration(banded).read(images)
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
    cleaned = runtime.repair(mixed(), "steps").images
    assert np.allclose(cleaned, np.rint(mixed() * 8) / 8, atol=1e-6)
    assert cleaned.dtype == np.float32
    with pytest.raises(BundleError, match="'median'; it has: steps"):
        runtime.repair(mixed(), "median")


def test_a_repair_asks_the_model_twice_and_the_second_network_once(runtime: Runtime) -> None:
    images = tiny_bundle.clean(200, seed=4)
    found = runtime.repair(images, "steps")
    flat = found.images.reshape(200, -1)
    classes = [(flat @ matrix).argmax(axis=1) for matrix in (tiny_bundle.weights()[0], tiny_bundle.second_matrix())]
    np.testing.assert_array_equal(found.classes, np.stack([classes[0], classes[0], classes[1]], axis=1))
    np.testing.assert_array_equal(found.stable, classes[0] == classes[1])
    assert 10 < int(found.stable.sum()) < 190


def test_each_opinion_counts() -> None:
    classes = np.asarray([[3, 3, 3], [3, 5, 3], [3, 3, 5], [5, 3, 3]])
    assert Repaired(np.zeros(4), classes).stable.tolist() == [True, False, False, False]


def test_only_the_repairs_that_are_asked_for_are_loaded(bundle: Bundle) -> None:
    assert list(Runtime.open(bundle, threads=1).repairs) == ["steps"]
    assert list(Runtime.open(bundle, threads=1, only_repairs=()).repairs) == []


def test_uint8_models(tmp_path: Path) -> None:
    runtime = Runtime.open(tiny_bundle.make(tmp_path / "bytes", datatype="UINT8"), threads=1)
    runtime.self_check()
    images = tiny_bundle.as_wire(mixed(), "UINT8")
    assert runtime.repair(images, "steps").images.dtype == np.uint8
    assert np.allclose(
        runtime.read(images, complete=True).scores,
        tiny_bundle.python_scores((images / 255).astype(np.float32)),
        atol=1e-5,
    )


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
    runtime = Runtime.open(altered(bundle, tmp_path / "other", "screen.onnx", graph.SerializeToString()), threads=1)
    with pytest.raises(BundleError, match="self-check: the model's outputs differ"):
        runtime.self_check()


def test_an_unsure_samples_tiny_logits_are_judged_by_the_others(bundle: Bundle, tmp_path: Path) -> None:
    """Another machine gives other numbers near zero; an error of the usual size it may not."""
    matrix = tiny_bundle.weights()[0].astype(np.float64)
    unsure = 0.5 - matrix @ np.linalg.solve(matrix.T @ matrix, matrix.T @ np.full(16, 0.5))
    images = tiny_bundle.clean(9, seed=3)
    images[0] = unsure.reshape(tiny_bundle.SHAPE)
    readings = Runtime.open(bundle, threads=1).read(images, complete=True)
    assert np.abs(readings.logits[0]).max() < 1e-5
    for error, refused in ((1e-4, False), (1e-1, True)):
        logits = readings.logits.copy()
        logits[0, 1] += error
        buffer = io.BytesIO()
        np.savez(buffer, images=images, logits=logits, scores=readings.scores, p_values=readings.p_value)
        other = altered(bundle, tmp_path / str(error), "samples.npz", buffer.getvalue())
        if refused:
            with pytest.raises(BundleError, match=r"sample 0 has .* for class 1, and 0\.1 in the bundle"):
                Runtime.open(other, threads=1).self_check()
        else:
            Runtime.open(other, threads=1).self_check()


def test_the_self_check_finds_other_verdicts(bundle: Bundle, runtime: Runtime) -> None:
    calmer = replace(runtime.calibration, clean_risks=runtime.calibration.clean_risks + 2)
    with pytest.raises(BundleError, match="got another verdict"):
        replace(runtime, cascade=runtime.cascade.with_calibration(calmer)).self_check()


@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "text", "half"])
def test_a_program_that_is_no_graph(bundle: Bundle, tmp_path: Path, content: bytes | None) -> None:
    whole = (bundle.path / "screen.onnx").read_bytes()
    spoilt = altered(bundle, tmp_path / "spoilt", "screen.onnx", whole[:200] if content is None else content)
    with pytest.raises(BundleError, match=r"cannot load screen\.onnx") as caught:
        Runtime.open(spoilt, threads=1)
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_or_gives_something_else(bundle: Bundle, tmp_path: Path) -> None:
    plain = altered(bundle, tmp_path / "plain", "screen.onnx", tiny_bundle.classifier())
    with pytest.raises(BundleError, match="gives no scores"):
        Runtime.open(plain, threads=1)
    other = replace(bundle.manifest.model, input=replace(bundle.manifest.model.input, shape=(1, 4, 5)))
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != "manifest.json"}
    wider = write_bundle(tmp_path / "wider", replace(bundle.manifest, model=other), files)
    with pytest.raises(BundleError, match=r"screen\.onnx takes"):
        Runtime.open(wider, threads=1)


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
        Runtime.open(other, threads=1)


# Devices.


def test_no_silent_fall_back_to_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"inference-guard\[gpu\]"):
        Session(bundle.path / "screen.onnx", device="cuda", threads=1)


CUDA = "CUDAExecutionProvider"
CUDA_DEFAULTS = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
SMALL_CUDA = CudaOptions(device_id=3, memory_bytes=2**31, arena="power_of_two")
SMALL_CUDA_ASKED = {
    **CUDA_DEFAULTS,
    "device_id": "3",
    "gpu_mem_limit": "2147483648",
    "arena_extend_strategy": "kNextPowerOfTwo",
}


@pytest.mark.parametrize(
    ("device", "cuda", "asked"),
    [
        ("cpu", CudaOptions(), ["CPUExecutionProvider"]),
        ("cpu", SMALL_CUDA, ["CPUExecutionProvider"]),
        ("cuda", CudaOptions(), [(CUDA, CUDA_DEFAULTS)]),
        ("cuda", SMALL_CUDA, [(CUDA, SMALL_CUDA_ASKED)]),
    ],
)
def test_what_is_asked_of_the_device(device: Device, cuda: CudaOptions, asked: list[Any]) -> None:
    assert providers(device, cuda) == asked


def test_every_session_gets_the_cuda_options(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ort, asked = onnxruntime(), []

    def on_the_cpu(path: str, options: Any, *, providers: list[Any]) -> Any:
        asked.append(providers)
        session = real(path, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: [CUDA])
        return session

    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(ort, "InferenceSession", on_the_cpu)
    Runtime.open(bundle, device="cuda", threads=1, cuda=SMALL_CUDA)
    assert asked == [[(CUDA, SMALL_CUDA_ASKED)]] * 3


def test_a_device_that_is_not_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU by itself when the device says no."""
    ort = onnxruntime()
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: real(path, options))
    with pytest.raises(DeviceError, match=r"fell back to CPUExecutionProvider.*device_id = 7"):
        Session(bundle.path / "screen.onnx", device="cuda", threads=1, cuda=CudaOptions(device_id=7))


@pytest.mark.parametrize(
    ("installed", "words"),
    [((), r"inference-guard\[cpu\]"), (("onnxruntime", "onnxruntime-gpu"), "overwrite each other")],
    ids=["none", "both"],
)
def test_exactly_one_onnx_runtime(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], words: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(DeviceError, match=words):
        onnxruntime()


def test_a_bundle_that_vanishes_while_it_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy.path / "screen.onnx").unlink()
    with pytest.raises(BundleError, match=r"screen\.onnx"):
        Runtime.open(copy, threads=1)


# Threads.

SPINNING = "session.intra_op.allow_spinning"


def widths(runtime: Runtime) -> list[int]:
    """The threads of every session, programs first."""
    sessions = [*runtime.sessions, *runtime.repairs.values()]
    return [session.session.get_session_options().intra_op_num_threads for session in sessions]


@pytest.mark.parametrize(
    ("threads", "costs", "found"),
    [
        (1, [1], [1]),
        (8, [4], [8]),
        (1, [1, 5], [1, 1]),
        (2, [1, 5], [1, 2]),
        (4, [1, 5], [2, 3]),
        (8, [1, 5], [3, 6]),
        (3, [2, 2], [2, 2]),
        (4, [1, 1, 100], [1, 1, 4]),
    ],
)
def test_threads_go_where_they_save_most(threads: int, costs: list[int], found: list[int]) -> None:
    assert divided(threads, costs) == found
    assert 1 + sum(width - 1 for width in found) == threads, "one caller, and what it wakes"


@pytest.mark.parametrize(("threads", "found"), [(1, [1, 1, 1]), (2, [1, 2, 1]), (3, [2, 2, 1])])
def test_sessions_of_a_shared_runtime_divide_its_threads(bundle: Bundle, threads: int, found: list[int]) -> None:
    runtime = Runtime.open(bundle, threads=threads, shared=True)
    assert widths(runtime) == found
    for session in (*runtime.sessions, *runtime.repairs.values()):
        assert session.session.get_session_options().get_session_config_entry(SPINNING) == "0"


def test_sessions_of_another_runtime_have_them_to_themselves(bundle: Bundle) -> None:
    """`guard bench` and crafting: explicit numbers, one beside the other in one process, and nothing else changed."""
    assert [widths(Runtime.open(bundle, threads=threads)) for threads in (2, 1, 3)] == [[2] * 3, [1] * 3, [3] * 3]
    with pytest.raises(RuntimeError, match="does not have"):
        Runtime.open(bundle, threads=2).sessions[0].session.get_session_options().get_session_config_entry(SPINNING)


def test_threads_follow_the_container(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "cpus", lambda: 3)
    assert widths(Runtime.open(bundle)) == [3, 3, 3]
    assert widths(Runtime.open(bundle, shared=True)) == [2, 2, 1]
    assert Session(bundle.path / "screen.onnx", device="cpu", threads=None).session.get_session_options()
    monkeypatch.setattr(container, "cpus", lambda: 1)
    assert widths(Runtime.open(bundle)) == [1, 1, 1]


@pytest.mark.parametrize(("shared", "wait_s"), [(True, 0.05), (False, 10.0)], ids=["shared", "alone"])
def test_shared_runtimes_take_turns(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, shared: bool, wait_s: float
) -> None:
    """Two threads with a Runtime each: do their sessions ever compute at the same time?"""
    runtimes = [Runtime.open(bundle, threads=1, shared=shared) for _ in range(2)]
    both, met = threading.Barrier(2), []

    class Meeting:
        def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
            try:
                both.wait(wait_s)
                met.append(True)
            except threading.BrokenBarrierError:
                met.append(False)
            return []

    for runtime in runtimes:
        monkeypatch.setattr(runtime.sessions[0], "session", Meeting())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda runtime: runtime.sessions[0].run(("logits",), mixed()), runtimes))
    assert met == [not shared] * 2


def test_readings_do_not_depend_on_the_threads(bundle: Bundle, runtime: Runtime) -> None:
    for threads in (1, 2, 5):
        same(Runtime.open(bundle, threads=threads, shared=True).read(mixed()), runtime.read(mixed()))


TELEMETRY = """
import os
from guard.session import onnxruntime
before = len(os.listdir("/proc/self/task"))
onnxruntime()
print(os.environ["ORT_DISABLE_TELEMETRY"], len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("set_by_hand", [None, "1"], ids=["default", "by hand"])
def test_onnx_runtime_tells_nobody(set_by_hand: str | None, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it start the thread that would: our own import of it comes first."""
    if set_by_hand is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", set_by_hand)
    else:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    found = subprocess.run(
        [sys.executable, "-c", TELEMETRY], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == ["1", "0"]
