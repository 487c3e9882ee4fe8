"""The command `guard doctor`: its lines, its JSON, its exit code, and whose settings it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guard import cli
from guard.doctor_commands import chosen_source, parsed
from guard.serve.doctor import running_guard
from guard.serve.doctor.machine import Machine, Process
from guard.serve.doctor.running_guard import RunningGuard
from tests.serve.guarded import free_port
from tests.serve.processes import ROOT, model_process
from tests.serve.processes import Process as Started


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_process(tmp_path_factory.mktemp("model")) as server:
        yield str(server.until_event("listening")["inference"])


@contextmanager
def serving(words: list[str]) -> Iterator[Started]:
    command = [sys.executable, "-m", "guard", "serve", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as popen:
        try:
            yield Started(popen, [])
        finally:
            popen.kill()


@pytest.fixture
def flags(bundle: Path, upstream: str) -> list[str]:
    listeners = [f"--{name}=127.0.0.1:{free_port()}" for name in ("listen", "metrics-listen", "admin-listen")]
    return [f"--bundle={bundle}", f"--upstream={upstream}", "--threads=1", *listeners]


def test_each_check_has_a_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert {"settings", "bundle", "promise", "upstream", "model", "answers", "bypass", "ports", "clock"} <= {
        line.split()[1] for line in lines
    }


def test_a_fault_has_an_exit_code(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    risky = [*flags, "--mode", "off"]
    assert cli.run(["doctor", *risky]) == 0
    assert cli.run(["doctor", *risky, "--strict"]) == 1
    capsys.readouterr()
    assert cli.run(["doctor", *flags, "--reject-rate", "1e-9", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == 1
    wrong = [remark for remark in report["checks"] if remark["result"] == "wrong"]
    assert [remark["check"] for remark in wrong] == ["promise"]
    assert "it takes 999999999" in wrong[0]["said"]


def test_a_guard_that_serves_here_is_no_fault(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its ports are taken by itself; once its model server is named wrongly, it says why it is not ready."""
    with serving(flags) as guard:
        guard.until_event("ready")
        assert cli.run(["doctor", *flags]) == 0
        said = capsys.readouterr().out
        assert "a guard serves on" in said
        assert "ok      running     the guard that serves here is ready" in said
        other = [flag for flag in flags if "admin-listen" not in flag]
        assert cli.run(["doctor", *other, f"--admin-listen=127.0.0.1:{free_port()}"]) == 1
        said = capsys.readouterr().out
        assert said.count(f"process {guard.popen.pid} (") == 2  # another guard has two of the three ports


def test_without_flags_the_settings_are_those_of_the_guard_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("--bundle=mine", "--upstream", "127.0.0.1:9000", "--debug", "--config", "guard.toml")
    process = Process(7, ("guard", "serve", *words))
    guards = [RunningGuard(process, words, {"GUARD_MODE": "shadow"}, tmp_path)]

    def found(_: Machine) -> list[RunningGuard]:
        return guards

    monkeypatch.setattr(running_guard, "running_guards", found)
    monkeypatch.chdir(ROOT)
    (tmp_path / "guard.toml").write_text("max_rows = 8\n")
    source, origin = chosen_source({"bundle": None, "config": None})
    config = source.load()
    assert (config.bundle, config.upstream, config.mode, config.max_rows) == ("mine", "127.0.0.1:9000", "shadow", 8)
    assert Path.cwd() == tmp_path
    assert origin.startswith("as process 7 (guard serve --bundle=mine")
    source, origin = chosen_source({"bundle": "theirs", "config": None})
    assert (source.load().bundle, origin) == ("theirs", "")
    guards[0] = RunningGuard(
        process, ("--model_name", "digits", "--predictor_host=p:9000"), {"GUARD_BUNDLE": "b"}, ROOT
    )
    config = chosen_source({"bundle": None, "kserve": None})[0].load()
    assert (config.bundle, config.upstream, config.model_name) == ("b", "p:9000", "digits")
    guards *= 2
    assert "2 guards run here" in chosen_source({"bundle": None})[1]


def test_a_command_line_is_read_by_serve_s_own_parser() -> None:
    flags = parsed(["--listen", "127.0.0.1:8081", "--threads=2", "--debug"])
    assert (flags["listen"], flags["threads"], flags["config"]) == ("127.0.0.1:8081", 2, None)
