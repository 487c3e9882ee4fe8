"""`guard bench` counts what is there. No test here asserts how long anything takes."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from guard.bundle import Bundle
from guard.calibration import Band
from guard.errors import BundleError, ConfigError
from guard.manifest import DetectorSpec, NeedSpec, ProgramSpec
from guard.offline.bench.bench import (
    bench,
    detector_cost,
    leaner,
    limit_of,
    program_cost,
    reached,
    run_bench,
)
from guard.offline.bench.costs import MODEL, BenchResult
from guard.offline.bench.excerpt import BACKWARD, FORWARD, HEADS, INPUT, ROWS
from guard.offline.bench.stopwatch import MIN_ROUNDS, Laps
from guard.offline.bench.table import lines_of
from guard.offline.work.tables import WIDTH_COLUMNS, print_lines
from tests.bench.networks import random_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle("small_cnn", tmp_path_factory.mktemp("small") / "bundle", shape=(1, 8, 8))


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> BenchResult:
    return bench(bundle, batches=(1, 3), threads=1, seconds=0, profiled=True)


def laps(**microseconds: float) -> Laps:
    """Two rounds, the second on a machine half as fast."""
    times = np.asarray(list(microseconds.values()), dtype=np.float64)
    names = {"model": MODEL, "lean": leaner("interpret", "one")}
    return Laps(tuple(names.get(name, name) for name in microseconds), np.stack([times, 2 * times]))


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_program_and_detector_has_a_cost(bundle: Bundle, result: BenchResult) -> None:
    assert [batch.items for batch in result.batches] == [1, 3]
    for batch in result.batches:
        assert batch.rounds >= MIN_ROUNDS
        assert [cost.name for cost in batch.programs] == ["screen", "interpret"]
        assert [cost.name for cost in batch.detectors] == list(bundle.calibration.detectors)
        spreads = [batch.model, batch.cascade_microseconds, batch.cascade_forwards, batch.read_microseconds]
        spreads += [part for cost in batch.programs for part in (cost.microseconds, cost.forwards, cost.over_floor)]
        assert all(0 < found.low <= found.median <= found.high for found in spreads)


def test_the_floor_is_the_manifests(bundle: Bundle, result: BenchResult) -> None:
    floors = [program.floor for program in bundle.manifest.programs]
    assert floors == [1, 5]  # a forward; and a backward, two denoised rows and a steered one beside it
    for batch in result.batches:
        assert [cost.floor for cost in batch.programs] == floors
        for cost in batch.programs:
            assert cost.over_floor.median == pytest.approx(cost.forwards.median / cost.floor)


def test_a_profile_tells_what_each_operator_is_for(bundle: Bundle, result: BenchResult) -> None:
    known = {FORWARD, BACKWARD, ROWS, HEADS, INPUT, *bundle.calibration.detectors}
    assert [found.program for found in result.profiles] == ["screen", "interpret"]
    screen, interpret = (found.by_part() for found in result.profiles)
    assert set(screen) | set(interpret) <= known
    assert {FORWARD, "mahalanobis", "kernel_density"} <= set(screen)
    assert {FORWARD, BACKWARD, ROWS, "saliency_classifier", "feature_squeezing"} <= set(interpret)
    assert BACKWARD not in screen
    assert ROWS not in screen
    for found in result.profiles:
        convolutions = {one.part: one.count for one in found.operators if one.kind == "Conv"}
        assert convolutions[FORWARD] == 2  # of the small CNN


def test_a_profile_is_of_the_operators_that_the_program_runs(
    bundle: Bundle, result: BenchResult, tmp_path: Path
) -> None:
    """Names are put on its tensors for the profile; that must not change what ONNX Runtime makes of it."""
    for found, program in zip(result.profiles, bundle.manifest.programs, strict=True):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / program.file)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(bundle.path / program.file), options, providers=["CPUExecutionProvider"])
        runs = Counter(node.op_type for node in onnx.load(tmp_path / program.file, load_external_data=False).graph.node)
        told = Counter[str]()
        for operator in found.operators:
            told[operator.kind] += operator.count
        layout = ("ReorderInput", "ReorderOutput", "Conv", "Mul", "HardSigmoid")
        assert {kind: told[kind] for kind in layout} == {kind: runs[kind] for kind in layout}


def test_a_screen_may_add_a_tenth_of_a_forward_or_150_microseconds() -> None:
    program = ProgramSpec("screen", "screen.onnx", ("one",), rows=0, backwards=0, opset=20)

    def met(model: float, screen: float) -> bool:
        return program_cost(program, laps(model=model, screen=screen), 1.3).met

    assert met(10.0, 109.0)  # eleven forwards, but only 149 µs more in the median of the two rounds
    assert met(10_000.0, 10_990.0)
    assert not met(1000.0, 1120.0)


def test_clean_traffic_is_held_to_the_forwards_that_it_may_cost(bundle: Bundle, result: BenchResult) -> None:
    assert result.limit is None
    found = replace(bundle, manifest=replace(bundle.manifest, recipe={"name": "mine", "cost": 3.0}))
    assert limit_of(found) == 3.0
    chosen = replace(found, manifest=replace(found.manifest, provenance={"choice": {"limit": 2.0}}))
    assert limit_of(chosen) == 2.0, "what --cost asked for counts"
    for limit, words in ((1e6, "forwards: met"), (1.0, "forwards: MISSED")):
        text = "\n".join(lines_of(replace(result, limit=limit)))
        assert f"clean traffic: aim ≤ {limit:g} {words}" in text
        assert ("clean traffic at batch 1" in text) is (words == "forwards: MISSED")


def test_any_other_program_is_judged_by_its_floor() -> None:
    program = ProgramSpec("interpret", "interpret.onnx", ("one",), rows=2, backwards=1, opset=20)
    cost = program_cost(program, laps(model=100.0, interpret=500.0), 1.3)
    assert (cost.forwards.median, cost.over_floor.median, cost.met) == (5.0, 1.25, True)
    assert not program_cost(program, laps(model=100.0, interpret=540.0), 1.3).met
    assert program_cost(program, laps(model=100.0, interpret=540.0), 2.0).met


def test_a_detector_costs_what_the_program_saves_without_it() -> None:
    program = ProgramSpec("interpret", "interpret.onnx", ("one", "two"), rows=1, backwards=1, opset=20)
    logits, gradient = NeedSpec("Logits()", "plain"), NeedSpec("InputGradient(of='logit')", "backward")
    one = DetectorSpec("one", "one()", (logits, gradient))
    two = DetectorSpec("two", "two()", (logits, NeedSpec("DenoisedLogits(denoiser=Median(window=2))", "rows")))
    measured = laps(model=100.0, interpret=500.0, lean=350.0)
    cost = detector_cost(one, program, {"one": one, "two": two}, measured)
    assert (cost.forwards.median, cost.microseconds.median, cost.at_least) == (1.5, 225.0, False)
    for kind in ("DenoisedLogits(denoiser=BitDepth(bits=4))", "SteeredLogits(steering=...)", "a kind still to come"):
        rows = replace(one, needs=(NeedSpec(kind, "rows"),))
        assert detector_cost(rows, program, {"one": rows, "two": two}, measured).at_least, "rows are shared"
    assert not detector_cost(replace(one, needs=two.needs), program, {"one": two, "two": two}, measured).at_least


def test_who_reaches_a_program_is_counted_on_clean_calibration_items(bundle: Bundle) -> None:
    risk = bundle.calibration.fusions[0].risk(bundle.calibration.clean_scores[:, :3])
    band = Band(high=float(np.quantile(risk, 0.8)))
    opened = Bundle.open(bundle.path)
    opened.__dict__["calibration"] = replace(opened.calibration, bands=(band,))
    everyone, some = reached(opened)
    assert everyone == 1.0
    assert some == pytest.approx(float((risk <= band.high).mean()))
    assert 0.7 < some < 0.9


def test_the_tables_fit_80_columns_and_hide_no_missed_aim(result: BenchResult) -> None:
    batch = result.batches[0]
    missing = replace(batch, programs=tuple(replace(cost, met=False) for cost in batch.programs))
    lines = lines_of(replace(result, batches=(missing,)))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= WIDTH_COLUMNS
    assert text.count("MISSED") == 2
    assert "aims missed: screen at batch 1, interpret at batch 1" in text
    assert "every aim is met" not in text
    for name in ("model alone", "cascade, clean traffic", "mahalanobis", "variant rows", "× 5"):
        assert name in text


@pytest.mark.parametrize("width", [40, 200])
def test_a_narrow_terminal_cuts_no_figure(result: BenchResult, width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    print_lines(console, lines_of(result))
    assert printed(console).splitlines() == lines_of(result)
    for batch in result.batches:
        assert f"{batch.per_second(batch.model):,.0f}" in printed(console)


def test_json_holds_everything(bundle: Bundle) -> None:
    console = Console(width=80, file=io.StringIO())
    run_bench(bundle, batches=(2,), threads=1, seconds=0, device="cpu", profile=False, as_json=True, console=console)
    raw = json.loads(printed(console))
    assert raw["batches"][0]["items"] == 2
    assert raw["reached"][0] == 1.0
    assert raw["batches"][0]["programs"][1]["floor"] == 5


def test_what_cannot_be_timed_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="sizes of at least 1"):
        bench(bundle, batches=(1, 0))
    opened = Bundle.open(bundle.path)
    samples = opened.samples
    opened.__dict__["samples"] = replace(samples, images=samples.images[:0])
    with pytest.raises(BundleError, match="no samples to run"):
        bench(opened, batches=(1,))
    opened.__dict__["samples"] = replace(samples, logits=samples.logits + 1)
    with pytest.raises(BundleError, match="the model alone differs from the bundle's samples"):
        bench(opened, batches=(1,))
