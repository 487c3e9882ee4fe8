"""`guard check`: sound set-ups are described as they are, broken ones end with one line that says what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from guard import cli
from guard.offline.preflight.check import TOLD_EVERY_S, told
from tests.offline.preflight.setups import DATA, FULL, MODELS, RECIPES, written

HERE = "tests.offline.preflight.setups"
SMALL_RECIPE = "small.toml"  # taken where a row names none

# name -> (model, data, further options, what is said)
SOUND: Mapping[str, tuple[str, str, str, tuple[str, ...]]] = {
    "ONNX, channels first": (
        "plain.onnx",
        "unit.npz",
        "--preset digits",
        (
            "input 'input': FP32 [item, 1, 8, 8] (NCHW), black is 0, white 1",
            "output 'logits': logits of 3 classes",
            "640 items; values fill 0% to 94% of the way from black to white, in whole steps of 1/16",
            "classes numbers 0 to 2;",
            "program interpret: 4 forwards (1 + 1 backward + 2 rows) for mahalanobis, kernel_density,",
        ),
    ),
    "a limit of forwards": (
        "plain.onnx",
        "unit.npz",
        "--preset digits --cost 2",
        ("within 2 forwards training chooses", "saliency_classifier +1,", "feature_squeezing (BitDepth(bits=2)) +1,"),
    ),
    "a range that begins below a step": (
        "plain.onnx",
        "unit.npz",
        "--recipe range-from-below.toml",
        ("its range of budgets begins at one step, 1/16, of the data's grid",),
    ),
    "ONNX of the older exporter, bytes with channels last": (
        "legacy.onnx",
        "bytes-last.npz",
        f"--range 0 {FULL}",
        ("the file has channels last", "black is 0, white 1.0625"),
    ),
    "ONNX, channels last": ("last.onnx", "unit.npz", "", ("FP32 [item, 8, 8, 1] (NHWC)", "channels first")),
    "ONNX for a fixed batch": ("fixed.onnx", "unit.npz", "", ("FP32 [item, 1, 8, 8]",)),
    "ONNX of bytes": ("bytes.onnx", "bytes.npz", "", ("input 'image': UINT8", "black is 0, white 255", "0% to 88%")),
    "torch.export": ("plain.pt2", "unit.npz", "", ("layers detectors may read relu",)),
    "module:factory": ("tests.offline.tiny:image_model", "last.npz", "", ("the file has channels last",)),
    "vectors": (
        "tests.offline.tiny:vector_model",
        "vectors.npz",
        "--preset vectors",
        ("FP32 [item, 12] (NC), least is 0, most 1", "of the way from least to most"),
    ),
    "probabilities": (
        "probabilities.onnx",
        "unit.npz",
        "--output probabilities",
        ("probabilities of 3 classes", "the answer changes with the input on 100%"),
    ),
    "a label": ("label.onnx", "unit.npz", "--output label", ("label of 3 classes", "on 100% of 128 items")),
    "mean and deviation": (
        f"{HERE}:normalised",
        "normalised.npz",
        "--mean 0.5 --std 0.25",
        ("black is -2, white 2", "the model is right on 100%"),
    ),
    "floats of 0 to 255": (f"{HERE}:wide", "wide.npz", "--range 0 240", ("white 240",)),
    "class folders": (
        "plain.onnx",
        "pictures",
        f"--range 0 {FULL}",
        ("classes 0 row, 1 side, 2 x;", "in whole steps of 1/17"),
    ),
    "IDX": ("plain.onnx", "idx", f"--range 0 {FULL}", ("640 items", "the model is right on 100%")),
    "held-out data": (
        "plain.onnx",
        "unit.npz",
        "--test unseen.npz",
        ("unit.npz: the model is right on 100%", "unseen.npz: the model is right on", "test 120 items"),
    ),
    "a rate that rests on one item": (
        "plain.onnx",
        "unit.npz",
        "--reject-rate 0.01",
        ("promise reject rate = 0.01 rests on 1 of 1", "the realised rate will vary widely"),
    ),
    "labels off by one, accepted": (
        "plain.onnx",
        "off-by-one.npz",
        "--accept-accuracy",
        ("with labels - 1 it would be 100%",),
    ),
}

# name -> (model, data, further options, exit code, what is said)
BROKEN: Mapping[str, tuple[str, str, str, int, tuple[str, ...]]] = {
    # The model cannot be had.
    "no model": ("none.onnx", "unit.npz", "", 4, ("none.onnx does not exist", "wanted an .onnx file")),
    "weights alone": ("weights.pth", "unit.npz", "", 4, ("'weights.pth' is no model", "export")),
    "a damaged ONNX": ("damaged.onnx", "unit.npz", "", 4, ("is no ONNX model", "damaged")),
    "an ONNX of nothing": ("no-operators.onnx", "unit.npz", "", 4, ("is no ONNX model", "no operators")),
    "a damaged archive": ("damaged.pt2", "unit.npz", "", 4, ("is not a torch.export archive",)),
    "no such module": ("no_such_module:make", "unit.npz", "", 4, ("cannot be imported", "wanted module:factory")),
    "a factory that fails": (f"{HERE}:raising", "unit.npz", "", 4, ("raised FileNotFoundError: weights.pth",)),
    "a batch of four": ("fixed.pt2", "unit.npz", "", 4, ("batches of 4; export it with a dynamic batch axis",)),
    # The model is of a kind that cannot be guarded.
    "a forest": ("forest.onnx", "unit.npz", "", 4, ("(the/node): a forest of decision trees",)),
    "brain floats": ("brain.onnx", "unit.npz", "", 4, ("bfloat16", "float32")),
    "a quantised model": ("quantised.onnx", "unit.npz", "", 4, ("quantised model", "guard the float file")),
    "dropout left on": ("dropping.onnx", "unit.npz", "", 4, ("drops out; export the model in evaluation mode",)),
    "batch statistics": ("normalising.onnx", "unit.npz", "", 4, ("export the model in evaluation mode",)),
    "items that mix": (f"{HERE}:mixing", "unit.npz", "", 4, ("otherwise among 8 items than alone", "mixes")),
    "a rounded input": (f"{HERE}:stepped", "unit.npz", "", 4, ("input gradient is zero", "give the float model")),
    "two outputs": ("two.onnx", "unit.npz", "", 4, ("scores [item, 3], shares [item, 3]", "--output-name")),
    "an output of another name": ("plain.onnx", "unit.npz", "--output-name nothing", 4, ("'nothing'", "logits")),
    "three classes for one sigmoid": (f"{HERE}:one_sigmoid", "unit.npz", "", 3, ("label 2", "classes 0 to 1")),
    "no softmax": ("plain.onnx", "unit.npz", "--output probabilities", 4, ("--output probabilities was given",)),
    # Model and data do not fit each other.
    "three channels": ("plain.onnx", "colour.npz", "", 4, ("[1, 8, 8]", "[3, 8, 8]: bring them to the model's")),
    "the wrong order of axes": ("plain.onnx", "last.npz", "--data-layout NCHW", 4, ("[8, 8, 1]: bring them",)),
    "floats of 0 to 1": (f"{HERE}:wide", "unit.npz", "--range 0 255", 3, ("multiply them, or hand over uint8",)),
    "beyond the range": ("plain.onnx", "wide.npz", "", 3, ("outside the model's range [0, 1]; set --range",)),
    "pictures of another size": ("plain.onnx", "other-size", "", 3, ("2 different sizes", "bring them to the model's")),
    "four folders": ("plain.onnx", "four-folders", "", 3, ("4 class folders", "the model has 3 classes")),
    "labels off by one": ("plain.onnx", "off-by-one.npz", "", 3, ("subtract 1 from the labels", "--accept-accuracy")),
    "labels from one": ("plain.onnx", "from-one.npz", "", 3, ("has label 3", "subtract 1")),
    "an untrained model": (f"{HERE}:untrained", "unit.npz", "", 3, ("no better than chance", "--accept-accuracy")),
    # The data cannot be used.
    "no data": ("plain.onnx", "none.npz", "", 3, ("none.npz does not exist; wanted",)),
    "another kind of file": ("plain.onnx", "notes.txt", "", 3, ("is of no known kind; wanted",)),
    "arrays of other names": ("plain.onnx", "other-names.npz", "", 3, ("['x', 'y']; wanted `images`",)),
    "no labels": ("plain.onnx", "no-labels.npz", "", 3, ("has no labels; an array `labels`",)),
    "names for labels": ("plain.onnx", "names.npz", "", 3, ("not names (row, side, x)",)),
    "too few labels": ("plain.onnx", "half-labels.npz", "", 3, ("640 inputs but labels of shape [300]",)),
    "NaN": ("plain.onnx", "nan.npz", "", 3, ("item 5 holds NaN or infinity; every value must be finite",)),
    "transparency": ("plain.onnx", "see-through", "", 3, ("transparent", "wanted")),
    "test data seen before": ("plain.onnx", "unit.npz", "--test unit.npz", 3, ("share 6", "must be held out")),
    "too few items": (
        "plain.onnx",
        "few.npz",
        "--reject-rate 0.1 --flag-rate 0.2",
        3,
        ("clean items fall to", "are needed, so bring about"),
    ),
    # What is promised and asked for.
    "a rate of no item": ("plain.onnx", "unit.npz", "--reject-rate 0.0001", 6, ("cannot be promised", "it takes 9999")),
    "no rate": ("plain.onnx", "unit.npz", "--flag-rate 5", 6, ("flag rate = 5 is no rate", "between 0 and 1")),
    "fewer flagged than rejected": (
        "plain.onnx",
        "unit.npz",
        "--reject-rate 0.1 --flag-rate 0.05",
        6,
        ("--flag-rate 0.05 is below --reject-rate 0.1", "give a flag rate of 0.1 or more"),
    ),
    "no such preset": ("plain.onnx", "unit.npz", "--preset strong", 2, ("unknown preset 'strong'; there are:",)),
    "no such layer": ("plain.onnx", "unit.npz", "--recipe layer.toml", 2, ("no layer 'layer4', but relu",)),
    "no such detector": ("plain.onnx", "unit.npz", "--recipe detector.toml", 2, ("'mahalanobi'; known: mahalanobis",)),
    "no adaptive attack": ("plain.onnx", "unit.npz", "--recipe no-adaptive.toml", 2, ("add [adaptive] with budgets",)),
    "half a forward": ("plain.onnx", "unit.npz", "--cost 0.5", 2, ("--cost 0.5", "give 1 or more")),
    "nothing to choose by": ("plain.onnx", "unit.npz", "--cost 2", 2, ("small has 1", "leave --cost out")),
    "two gradients": ("plain.onnx", "unit.npz", "--recipe two-gradients.toml", 2, ("2 different", "wanted one")),
    "a budget below a step": ("plain.onnx", "unit.npz", "--recipe fine-budget.toml", 2, ("below one step, 1/16",)),
    "an adaptive budget below a step": (
        "plain.onnx",
        "unit.npz",
        "--recipe fine-adaptive.toml",
        2,
        ("adaptive budget 0.01 is below one step, 1/16", "give 0.0625 or more"),
    ),
    "a budget of 255": (
        "plain.onnx",
        "unit.npz",
        "--recipe large-budget.toml",
        2,
        ("its budget is above 1, the whole range of values", "Give 8/255 = 0.0314"),
    ),
    "no such attack": ("plain.onnx", "unit.npz", "--recipe attack.toml", 2, ("'pdg'", "pgd")),
    "a preset for images": (
        "tests.offline.tiny:vector_model",
        "vectors.npz",
        "--preset standard",
        2,
        ("patch", "wanted"),
    ),
    "a deviation alone": ("plain.onnx", "unit.npz", "--std 0.2", 2, ("--mean and --std go together",)),
    "a range turned round": ("plain.onnx", "unit.npz", "--range 1 0", 2, ("first must be below the second",)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models and data, each written when it is first asked for."""
    return tmp_path_factory.mktemp("setups")


def arguments(files: Path, model: str, data: str, options: str) -> list[str]:
    further = [written(files, word) for word in options.split()]
    recipe = [] if {"--preset", "--recipe"} & set(further) else ["--recipe", written(files, SMALL_RECIPE)]
    return ["check", "--model", written(files, model), "--data", written(files, data), *further, *recipe]


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(file), file.stat().st_mtime_ns) for file in folder.rglob("*"))


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_setup_is_described(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, options, wanted = SOUND[name]
    code = cli.run(arguments(files, model, data, options))
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith("reading   ")
    assert lines[-1].startswith("sound     guard train can begin")
    assert max(map(len, lines[1:])) <= 80
    text = " ".join(said.out.split())
    assert [words for words in wanted if words not in text] == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_setup_ends_with_what_to_do(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, options, wanted_code, wanted = BROKEN[name]
    code = cli.run(arguments(files, model, data, options))
    said = capsys.readouterr()
    assert said.err.startswith("guard: ")
    assert said.err.count("\n") == 1
    assert "sound " not in said.out
    assert [words for words in wanted if words not in said.err] == [], said.err
    assert code == wanted_code


def test_every_setup_is_tried() -> None:
    tried = " ".join(" ".join(row[:3]) for row in (*SOUND.values(), *BROKEN.values()))
    assert [name for name in (*MODELS, *DATA, *RECIPES) if name not in tried and name != SMALL_RECIPE] == []


@pytest.mark.parametrize(("model", "options"), [("plain.onnx", ""), ("none.onnx", ""), ("label.onnx", "")])
def test_nothing_is_written(
    model: str, options: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(files, model, "unit.npz", options)
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = [listing(folder) for folder in (files, tmp_path)]
    cli.run(given)
    assert [listing(folder) for folder in (files, tmp_path)] == before


def test_a_wrong_model_is_found_before_data_are_read(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading a large folder takes minutes; what is known of the model's file by then is said first."""
    for model in ("none.onnx", "damaged.pt2", "weights.pth"):
        assert cli.run(["check", "--model", written(files, model), "--data", str(tmp_path / "none.npz")]) == 4
    assert "none.npz" not in capsys.readouterr().err


def test_long_reading_says_how_far_it_is() -> None:
    now: list[float] = [0.0]
    said: list[str] = []
    tell = told(lambda about, text: said.append(f"{about} {text}"), lambda: now[0])
    for done in range(1, 2001):
        now[0] += TOLD_EVERY_S / 512  # a power of two, that sums are exact
        tell(done, 2000)
    assert said == [f"reading {done} of 2,000 items" for done in ("512", "1,024", "1,536")]


def test_short_reading_says_nothing() -> None:
    said: list[str] = []
    tell = told(lambda about, text: said.append(text))
    for done in range(100):
        tell(done, 100)
    assert said == []
