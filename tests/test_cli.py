"""The command line: help, one-line errors, documented exit codes, nothing half-written."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guard import cli
from guard.manifest import FORMAT_VERSION
from guard.offline import train as training
from guard.offline.denoisers.table import DENOISERS
from guard.offline.job.job import Job
from guard.offline.job.recipe import presets
from guard.offline.job.suite import suites
from guard.offline.preflight import check as checking
from tests.serve import tiny_bundle

COMMANDS = (
    *("demo", "check", "train", "evaluate", "score", "inspect", "calibrate", "audit", "explain"),
    *("sign", "pack", "unpack", "track", "bench"),
    *("serve", "schema", "model-server", "probe", "doctor", "drain", "conformance"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    return tiny_bundle.make(folder / "bundle").path


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = cli.run(words)
    said = capsys.readouterr()
    assert not [line for line in said.out.splitlines() if not line.startswith("reading   ")]  # of model and data
    assert said.err.count("\n") == 1, said.err
    return code, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert f"guard {command}" in capsys.readouterr().out


def test_commands_are_those_that_the_design_names() -> None:
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback} == set(COMMANDS)


def test_score_gives_one_json_line_an_item(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", images=np.concatenate([tiny_bundle.ordinary(3), tiny_bundle.striped(1)]))
    assert cli.run(["score", str(bundle), str(tmp_path / "data.npz")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["action"] == "pass"
    assert lines[3]["action"] == "reject"
    assert set(lines[0]) == {"item", "prediction", "action", "p_value", "detectors"}


def test_a_reader_who_has_seen_enough(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=tiny_bundle.ordinary(2000))
    command = f'"{sys.executable}" -m guard score "{bundle}" "{tmp_path}/data.npz" | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["item"] == 0
    assert done.stderr == ""


def test_inspect_fits_eighty_columns(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "promise" in said
    assert max(map(len, said.splitlines())) <= max(80, len(str(bundle)) + 12)
    assert cli.run(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == FORMAT_VERSION


def test_inspect_says_how_far_the_served_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = {"form": "computes in float16 and quantised numbers (QDQ)", "changed": 0.0123}
    bundle = tiny_bundle.make(tmp_path / "bundle", provenance={"served": served})
    assert cli.run(["inspect", str(bundle.path)]) == 0
    said = capsys.readouterr().out
    assert (
        "served      computes in float16 and quantised numbers (QDQ); 1.23% of the\n"
        "            predictions differ from its float32 copy's\n"
    ) in said


def test_bundle_errors(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "inspect", str(tmp_path / "none"))[0] == 5
    np.savez(tmp_path / "data.npz", images=np.full((1, *tiny_bundle.ordinary(1).shape[1:]), np.nan, dtype=np.float32))
    code, said = complaint(capsys, "score", str(bundle), str(tmp_path / "data.npz"))
    assert code == 3
    assert "NaN" in said


def test_data_of_another_shape(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 5), dtype=np.float32))
    code, said = complaint(capsys, "score", str(bundle), str(tmp_path / "data.npz"))
    assert code == 3
    assert "[5]" in said


def test_cuda_is_refused_where_there_is_none(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.fail("this test is for machines without onnxruntime-gpu")
    np.savez(tmp_path / "data.npz", images=tiny_bundle.ordinary(1))
    assert complaint(capsys, "score", str(bundle), str(tmp_path / "data.npz"), "--device", "cuda")[0] == 8


def test_taken_port(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code = cli.run(
            [
                *("serve", "--bundle", str(bundle), "--upstream", "127.0.0.1:9", "--listen", address),
                *("--metrics-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
            ]
        )
    said = capsys.readouterr().err.splitlines()
    assert code == 9
    assert said[-1].startswith("guard: ")
    assert address in said[-1]


def test_unknown_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "guard.toml"
    file.write_text("reject_rat = 0.1\n", encoding="utf-8")
    code, said = complaint(capsys, "serve", "--config", str(file))
    assert code == 2
    assert "reject_rate" in said


def test_rate_that_cannot_be_promised(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = complaint(
        capsys, "serve", "--bundle", str(bundle), "--upstream", "127.0.0.1:9", "--reject-rate", "1e-9"
    )
    assert code == 6
    assert "it takes" in said


def test_probe_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert complaint(capsys, "probe", f"127.0.0.1:{free.getsockname()[1]}", "--timeout", "0.2")[0] == 10


def test_train_refuses_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    model = tmp_path / "broken.pt2"
    model.write_bytes(b"not a model")
    np.savez(tmp_path / "data.npz", images=np.zeros((10, 1, 8, 8), dtype=np.float32), labels=np.zeros(10, dtype=int))
    words = ("train", "--model", str(model), "--data", str(tmp_path / "data.npz"), "--out", str(out))
    code, said = complaint(capsys, *words, "--preset", "digits")
    assert code == 4
    assert "torch.export" in said
    assert complaint(capsys, *words, "--preset", "nonsense")[0] == 2
    assert complaint(capsys, *words, "--range", "1", "0")[0] == 2
    assert complaint(capsys, *words, "--mean", "0.5")[0] == 2
    assert not out.exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from guard.errors import BundleError

    with pytest.raises(BundleError):
        cli.run(["inspect", str(tmp_path / "none"), "--debug"])


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--bogus"]) == 2
    assert "--bogus" in capsys.readouterr().err


def test_an_interrupt_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert cli.run(["train", "--model", "m.pt2", "--data", "d.npz", "--out", str(tmp_path / "b")]) == 130
    assert "what was finished is kept" in capsys.readouterr().err


def test_minutes_are_planned_for_unless_sizes_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs: list[Job] = []

    def stop(job: Job, stages: object) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    words = ["train", "--model", "m.pt2", "--data", "d.npz", "--out", str(tmp_path / "b")]
    cli.run(words)
    cli.run([*words, "--minutes", "60", "--craft-items", "500"])
    assert [(job.minutes, job.craft_items, job.attack_items) for job in jobs] == [(25, None, None), (60, 500, None)]


def test_training_and_its_check_hear_which_file_answers_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs: list[Job] = []

    def stop(job: Job, *_: object, **__: object) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    monkeypatch.setattr(checking, "check", stop)
    words = ["--model", "m.onnx", "--data", "d.npz", "--served", "int8.onnx"]
    cli.run(["train", *words, "--out", str(tmp_path / "b")])
    cli.run(["check", *words])
    assert [job.served for job in jobs] == [Path("int8.onnx")] * 2


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert re.fullmatch(r"guard \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_names_what_there_is_and_shows_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = {}
    for command in COMMANDS:
        assert cli.run([command, "--help"]) == 0
        said[command] = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
        assert f"Example: guard {command}" in said[command]
    listed = {"train": [*presets(), *DENOISERS], "evaluate": suites()}
    left = {name for command, names in listed.items() for name in names if name not in said[command]}
    assert left == set(), "guard/options.py wants these in the help of --repair, --preset or --suite"
