"""What is written is what torch computes, or nothing is written; and it tells nobody where it was made."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from guard.bundle import Bundle
from guard.errors import ParityError
from guard.features import Feature
from guard.manifest import InputSpec
from guard.offline.denoisers.table import DENOISERS
from guard.offline.job.job import Job
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.parity import check_parity, in_parts
from guard.offline.programs.program import Cleaner, Program, unit_of, wire_of
from guard.offline.programs.write_programs import WEIGHTS, ProgramFiles, WeightsPool, compile_programs
from guard.session import Session
from tests.offline import tiny
from tests.offline.denoisers.prepared import prepared
from tests.offline.told import Told

REPAIRS = {name: DENOISERS[name] for name in ("bit_depth", "median")}  # each by itself: tests/offline/denoisers
SPLIT = {"screen": ("mahalanobis", "kernel_density"), "interpret": ("saliency_classifier", "feature_squeezing")}


@pytest.fixture(scope="module")
def programs(tiny_subject: OpenedGuard) -> dict[str, Program]:
    subject = tiny_subject
    return {
        name: Program(subject.classifier, [subject.heads[d.name] for d in detectors])
        for name, detectors in subject.programs.items()
    }


@pytest.fixture(scope="module")
def wire() -> NDArray[np.float32]:
    return tiny.data(60, seed=31)[0]


@pytest.fixture(scope="module")
def folder(tiny_bundle: Bundle) -> Path:
    """Where the written programs lie."""
    return tiny_bundle.path


@pytest.fixture(scope="module")
def again(
    programs: Mapping[str, Program], wire: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ProgramFiles, Path]:
    """One program compiled once more, with some denoisers, and where the files lie."""
    second = tiny.second_network("images")
    cleaners = {name: Cleaner(build(), tiny.image_classifier(), [second]) for name, build in REPAIRS.items()}
    compiled, place = compile_programs({"screen": programs["screen"]}, cleaners, wire), tmp_path_factory.mktemp("again")
    for name, content in compiled.files.items():
        (place / name).write_bytes(content)
    return compiled, place


def session(folder: Path, name: str) -> Session:
    return Session(folder / f"{name}.onnx", device="cpu", threads=1)


def test_the_manifest_lists_what_it_costs(tiny_bundle: Bundle) -> None:
    specs = tiny_bundle.manifest.programs
    found = {spec.name: (spec.detectors, spec.rows, spec.backwards, spec.floor) for spec in specs}
    assert found == {"screen": (SPLIT["screen"], 0, 0, 1), "interpret": (SPLIT["interpret"], 2, 1, 4)}


def test_what_is_compiled_is_what_is_listed(again: tuple[ProgramFiles, Path]) -> None:
    compiled, _ = again
    assert [spec.name for spec in compiled.repairs] == list(REPAIRS)
    listed = {spec.file for spec in compiled.programs} | {spec.file for spec in compiled.repairs}
    assert set(compiled.files) == listed | {WEIGHTS}


@pytest.mark.parametrize("name", SPLIT)
def test_onnx_runtime_and_torch_agree(
    name: str, programs: Mapping[str, Program], folder: Path, wire: NDArray[np.float32]
) -> None:
    parity = check_parity(name, programs[name], session(folder, name), wire)
    assert max(parity.errors.values()) <= 1
    assert set(parity.errors) >= {"the logits", *SPLIT[name]}


@pytest.mark.parametrize("items", [1, 2, 5, 60])
@pytest.mark.parametrize("name", SPLIT)
def test_any_number_of_items(name: str, items: int, folder: Path, wire: NDArray[np.float32]) -> None:
    one = session(folder, name)
    logits, scores = one.run(("logits", "scores"), wire[:items])
    assert logits.shape == (items, tiny.CLASSES)
    assert scores.shape == (items, 2)
    assert one.session.get_inputs()[0].shape[0] == "batch"


def test_further_answers_are_given_by_name(
    tiny_bundle: Bundle, programs: Mapping[str, Program], folder: Path, wire: NDArray[np.float32]
) -> None:
    """What explains a verdict: the answers to denoised inputs, one row each, as torch has them."""
    screen, interpret = tiny_bundle.manifest.programs
    assert screen.opinions == ()
    assert "opinions" not in {one.name for one in session(folder, "screen").session.get_outputs()}
    assert interpret.opinions == ("denoised: BitDepth(bits=2)", "denoised: Median(window=2)")
    (found,) = session(folder, "interpret").run(("opinions",), wire)
    evidence = programs["interpret"].evidence(torch.from_numpy(wire))
    expected = [evidence[need].detach().numpy() for need in programs["interpret"].answers]
    assert found.shape == (len(wire), 2, tiny.CLASSES)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-4)


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_are_the_denoisers(name: str, again: tuple[ProgramFiles, Path], wire: NDArray[np.float32]) -> None:
    cleaned, classes = session(again[1], f"repair-{name}").run(("cleaned", "classes"), wire)
    denoiser, model = DENOISERS[name](), tiny.image_classifier()
    np.testing.assert_allclose(cleaned, denoiser(torch.from_numpy(wire)).numpy(), atol=1e-6)
    once = torch.from_numpy(cleaned)
    answers = [model(once), model(denoiser(once)), tiny.second_network("images").network(once)]
    for found, logits in zip(classes.T, answers, strict=True):
        close = logits.topk(2).values.diff(dim=1).abs()[:, 0] < 1e-4  # torch and ONNX Runtime may name either
        assert torch.equal(torch.from_numpy(found)[~close], logits.argmax(dim=1)[~close])
    (spec,) = [spec for spec in again[0].repairs if spec.name == name]
    assert spec.opinions == ("cleaned once", "cleaned twice", "small, cleaned once")


# Refusals.


def disturbed(path: Path, folder: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Session:
    """The program with its first convolution's weights changed in the written file."""
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / f"{name}.onnx")
    first = next(node for node in model.graph.node if node.op_type == "Conv" and "input" in node.input)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    changed = onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), tensor.name)
    tensor.CopyFrom(changed)
    for other in model.graph.initializer:
        other.ClearField("data_location")
        other.ClearField("external_data")
    onnx.save(model, path / f"{name}.onnx")
    return session(path, name)


@pytest.mark.parametrize("name", SPLIT)
def test_one_weight_that_differs_is_refused(
    name: str, programs: Mapping[str, Program], folder: Path, wire: NDArray[np.float32], tmp_path: Path
) -> None:
    def one_weight(weights: NDArray[Any]) -> NDArray[Any]:
        other = weights.copy()
        other.flat[3] += 0.02
        return other

    unchanged = tmp_path / "unchanged"
    unchanged.mkdir()
    check_parity(name, programs[name], disturbed(unchanged, folder, name, np.copy), wire)
    with pytest.raises(ParityError, match=f"'{name}'.*differ"):
        check_parity(name, programs[name], disturbed(tmp_path, folder, name, one_weight), wire)


def answers(program: Program, wire: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        return [value.numpy().copy() for value in program(torch.from_numpy(wire))]


@pytest.mark.parametrize(("outliers", "refused"), [(0, False), (1, False), (3, True)])
def test_one_gradient_of_a_hundred_may_sit_on_a_kink(
    outliers: int, programs: Mapping[str, Program], *, refused: bool
) -> None:
    wire = tiny.data(200, seed=32)[0]
    outputs = answers(programs["interpret"], wire)
    outputs[2][10 : 10 + outliers] *= -1
    told: Any = Told(tuple(outputs))
    if refused:
        with pytest.raises(ParityError, match=r"the input gradient.*3 of 200 items.*items \[10, 11, 12\]"):
            check_parity("interpret", programs["interpret"], told, wire)
    else:
        parity = check_parity("interpret", programs["interpret"], told, wire)
        assert parity.outliers == tuple(range(10, 10 + outliers))


@pytest.mark.parametrize("output", [0, 1], ids=["logits", "scores"])
def test_every_forward_output_of_every_item_counts(output: int, programs: Mapping[str, Program]) -> None:
    wire = tiny.data(30, seed=33)[0]
    outputs = answers(programs["screen"], wire)
    check_parity("screen", programs["screen"], _told(outputs), wire)
    outputs[output][17] += 1e-3 * np.abs(outputs[output]).max()
    with pytest.raises(ParityError):
        check_parity("screen", programs["screen"], _told(outputs), wire)


def test_a_head_that_is_written_wrongly_is_refused(programs: Mapping[str, Program]) -> None:
    """Also one whose score rests on gradients, where the plain scores' tolerance cannot hold."""
    wire = tiny.data(200, seed=33)[0]
    for column in range(2):
        outputs = answers(programs["interpret"], wire)
        outputs[1][:, column] += 0.05 * outputs[1][:, column].std()
        name = SPLIT["interpret"][column]
        with pytest.raises(ParityError, match=f"'interpret': {name} of item"):
            check_parity("interpret", programs["interpret"], _told(outputs), wire)


def _told(outputs: list[NDArray[np.float32]]) -> Any:
    return Told(tuple(outputs))


def test_scores_that_are_no_number_never_agree(programs: Mapping[str, Program]) -> None:
    wire = tiny.data(30, seed=33)[0]
    outputs = answers(programs["screen"], wire)
    for output in range(len(outputs)):
        spoilt = [value.copy() for value in outputs]
        spoilt[output][3] = np.nan
        with pytest.raises(ParityError):
            check_parity("screen", programs["screen"], _told(spoilt), wire)


def test_comparing_equals_finds_nothing(programs: Mapping[str, Program], wire: NDArray[np.float32]) -> None:
    parity = check_parity("interpret", programs["interpret"], _told(in_parts(programs["interpret"], wire)), wire)
    assert set(parity.errors.values()) == {0.0}
    assert parity.outliers == parity.explained == ()


# The files.


def initializers(content: bytes) -> list[onnx.TensorProto]:
    return list(onnx.load_from_string(content).graph.initializer)


def test_each_content_is_in_the_weights_file_once(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    places: dict[bytes, int] = {}
    shared = 0
    for file in folder.glob("*.onnx"):
        for tensor in initializers(file.read_bytes()):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {item.key: item.value for item in tensor.external_data}
                assert entry["location"] == WEIGHTS
                start, length = int(entry["offset"]), int(entry["length"])
                assert start + length <= len(weights)
                part = weights[start : start + length]
                shared += part in places
                assert places.setdefault(part, start) == start
    assert shared > 0, "the programs share the model's weights"
    assert len(weights) < sum(len(part) + 64 for part in places)


def test_the_pool_keeps_contents_apart() -> None:
    pool = WeightsPool()
    places = [pool.place(content) for content in (b"a" * 100, b"b" * 50, b"a" * 100)]
    assert places == [(0, 100), (128, 50), (0, 100)]
    assert pool.content() == b"a" * 100 + b"\0" * 28 + b"b" * 50


def test_no_file_of_a_bundle_says_where_it_was_made(tiny_bundle: Bundle, tiny_job: Job) -> None:
    here = [
        str(Path.cwd()),
        str(Path.home()),
        str(tiny_job.out.parent),
        str(Path(torch.__file__).parent),
        socket.gethostname(),
    ]
    traces = [rb'File "', rb"Traceback", rb"site-packages", rb"\.py\b", rb"stack_trace", rb"nn\.modules"]
    for file in tiny_bundle.path.iterdir():
        content = file.read_bytes()
        assert not [place for place in here if len(place) > 3 and place.encode() in content], file.name
        assert not [trace for trace in traces if re.search(trace, content)], file.name


# The value box.


@pytest.mark.parametrize("box", [((0.0,), (1.0,)), ((-2.0, 0.0, 1.0), (2.0, 255.0, 3.0))], ids=["unit", "per channel"])
def test_wire_values_and_back(box: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    spec = InputSpec("input", "FP32", (3, 4, 4), *box, None)
    unit = torch.rand((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit_of(wire_of(unit, spec.box), spec.box), unit)
    assert float(wire_of(torch.zeros(1, 3, 4, 4), spec.box)[0, 1, 0, 0]) == spec.low[-1 if len(spec.low) == 1 else 1]


def test_a_wire_of_bytes_channels_last() -> None:
    spec = InputSpec("input", "UINT8", (3, 4, 5), (0.0,), (255.0,), 255, "NHWC")
    wire = torch.randint(0, 256, (2, 4, 5, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    unit = unit_of(wire, spec.box)
    assert np.array_equal(unit.numpy(), spec.box.to_unit(wire.numpy()))
    assert torch.equal(wire_of(unit, spec.box), wire)


def test_a_cleaner_works_in_unit_space_whatever_the_wire() -> None:
    model = tiny.image_classifier()
    spec = replace(model.spec.input, low=(-1.0,), high=(3.0,))
    classifier = replace(model, spec=replace(model.spec, input=spec))
    unit = torch.from_numpy(tiny.data(6, seed=2)[0])
    for denoiser in (prepared(name, tiny.SHAPE) for name in DENOISERS):
        cleaned, _ = Cleaner(denoiser, classifier)(wire_of(unit, spec.box))
        torch.testing.assert_close(unit_of(cleaned, spec.box), denoiser(unit))


KEPT_FEATURES = (
    Feature("birth year", "integer", 1900, 2010, step=1, immutable=True),
    Feature("region", "categorical", 100_000_001, 100_000_009, categories=(100_000_001, 100_000_003, 100_000_009)),
    Feature("weight", "numeric", 0.0, 3.3, immutable=True),
    Feature("income", "numeric", 0, 100_000, open_high=True),
    Feature("balance", "numeric", -500, 500, open_low=True),
    *(Feature(f"free {place}", "numeric", 0, 10) for place in range(7)),
)
KEPT_ROWS = np.array([
    [1987, 100_000_003, 0.1, 250_000.5, -7_000.25, *[1.3] * 7],
    [1950, 100_000_001, 2.7, 50_000, 20, *[8.8] * 7],
])  # fmt: skip


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_a_cleaner_passes_on_what_a_table_must_keep_bit_for_bit(datatype: str) -> None:
    model, features = tiny.vector_classifier(), KEPT_FEATURES
    low, high = tuple(f.low for f in features), tuple(f.unit_high for f in features)
    spec = InputSpec("input", datatype, (len(features),), low, high, None, "NC", features)
    cleaner = Cleaner(prepared("bit_depth", (tiny.FEATURES,)), replace(model, spec=replace(model.spec, input=spec)))
    wire = torch.from_numpy(KEPT_ROWS.astype(spec.box.dtype))
    program = lower(cleaner, wire, input_name="input", output_names=Cleaner.outputs)
    session = InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    for cleaned in (cleaner(wire)[0].numpy(), session.run(["cleaned"], {"input": wire.numpy()})[0]):
        kept = np.array([[True] * 5 + [False] * 7, [True] * 3 + [False] * 9])
        assert cleaned.dtype == spec.box.dtype
        assert np.array_equal(cleaned[kept], wire.numpy()[kept])
        assert not (cleaned[:, 5:] == wire.numpy()[:, 5:]).any(), "what is free is cleaned"
