"""The image, as far as it can be tried without an engine: its sources, its install commands, its entry point."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from guard import cli
from guard.config import ServeConfig, load_config
from guard.serve.doctor.machine import Machine, Process
from tests import dockerfile, lock
from tests.serve import tiny_bundle
from tests.serve.guarded import free_port
from tests.serve.processes import Process as Started

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = dockerfile.read(ROOT / "Dockerfile")
IGNORE = dockerfile.patterns(ROOT / ".dockerignore")
SERVING = ("cpu", "cuda")  # --target; train is the third
TARGETS = (*SERVING, "train")
LOCKED = re.compile(r"([a-z0-9-]+)==([\w.]+) (?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+\n")
HELD = """
import importlib.metadata as installed, json, re
found = {re.sub("[-_.]+", "-", one.metadata["Name"]).lower(): one.version for one in installed.distributions()}
print(json.dumps(found))
"""
DOORS = """
import os
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
from guard.serve.tracing import build_provider, exporter_names
assert list(exporter_names(os.environ)) == ["otlp_proto_grpc"]
provider = build_provider(os.environ)
import guard.serve.envoy.authorization
import guard.serve.rest.door
import guard.signing, cryptography
print("opened", flush=True)
os._exit(0)
"""
COPIES = [i for stage in DOCKERFILE.stages.values() for i in stage.all("COPY") if not i.text.startswith("--from=")]
SOURCES = sorted({source for instruction in COPIES for source in instruction.words[:-1]})


def environment(target: str) -> dict[str, str]:
    """The variables that the image sets."""
    words = [word for i in DOCKERFILE.lineage(target) if i.name == "ENV" for word in i.words]
    return dict(word.split("=", 1) for word in words)


def last(target: str, name: str) -> dockerfile.Instruction:
    return [i for i in DOCKERFILE.lineage(target) if i.name == name][-1]


def pins(name: str) -> dict[str, str]:
    return dict(lock.pins((ROOT / "deploy" / f"{name}.txt").read_text("utf-8")))


@pytest.mark.parametrize("source", SOURCES)
def test_every_file_it_copies_is_there(source: str, tmp_path: Path) -> None:
    copy = dockerfile.Instruction("COPY", f"{source} ./")
    assert dockerfile.copy(copy, context=ROOT, ignore=IGNORE, target=tmp_path)


def test_the_context_holds_sources_only(tmp_path: Path) -> None:
    (everything,) = [dockerfile.Instruction("COPY", ". ./")]
    (tmp_path / "context/guard/__pycache__").mkdir(parents=True)
    for name in ("LICENSE", "secret.env", "guard/cli.py", "guard/__pycache__/cli.pyc", "deploy/cpu.txt", "deploy/x.md"):
        (tmp_path / "context" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "context" / name).touch()
    came = dockerfile.copy(everything, context=tmp_path / "context", ignore=IGNORE, target=tmp_path / "image")
    assert {file.as_posix() for file in came} == {"LICENSE", "guard/cli.py", "deploy/cpu.txt"}


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_number_that_is_not_root(target: str) -> None:
    user, _, group = last(target, "USER").text.partition(":")
    assert user.isdigit()
    assert group.isdigit()
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_it_holds_what_the_build_stage_installed_and_its_list(target: str) -> None:
    installed, listed = [i for i in DOCKERFILE.lineage(target) if i.name == "COPY"]
    assert installed.words == [f"--from=install-{target}", "/opt/guard", "/opt/guard"]
    assert listed.words == [f"--from=list-{target}", "/source/guard.cdx.json", "/usr/share/sbom/"]
    assert environment(target)["PATH"].startswith("/opt/guard/bin:")
    assert not [i for i in DOCKERFILE.lineage(target) if i.name == "RUN"]
    # A virtual environment points at its interpreter: both stages have to have the same one.
    assert DOCKERFILE.image(target) == DOCKERFILE.image(f"install-{target}") == "python:3.11-slim"


@pytest.mark.parametrize("stage", ["install", "list"])
def test_the_targets_are_made_the_same_way(stage: str) -> None:
    made = {target: DOCKERFILE.stages[f"{stage}-{target}"].instructions for target in TARGETS}
    for target in TARGETS:
        as_cpu = [(i.name, re.sub(rf"\b{target}\b", "cpu", i.text)) for i in made[target]]
        assert as_cpu == [(i.name, i.text) for i in made["cpu"]]


@pytest.mark.parametrize("target", TARGETS)
def test_the_lock_is_what_pyproject_asks_for(target: str) -> None:
    found = pins(target)
    for line in lock.wanted(target):
        name, low = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert parts(found[name.lower()]) >= parts(low), line
    offline = {"torch", "scikit-learn", "onnx", "matplotlib"}
    assert offline & set(found) == (set() if target in SERVING else offline)
    assert not {"pytest", "pip"} & set(found)
    assert ("onnxruntime" in found, "onnxruntime-gpu" in found) == (target != "cuda", target == "cuda")


@pytest.mark.parametrize("name", [*TARGETS, *lock.TOOLS, "last"])
def test_every_wheel_is_locked_by_its_digest(name: str) -> None:
    head, _, text = (ROOT / "deploy" / f"{name}.txt").read_text("utf-8").partition("\n")
    assert head == f"# {lock.HEADS[name]}, Python 3.11 on Linux; written by tests/lock.py."
    assert "".join(found[0] for found in LOCKED.finditer(text)) == text
    assert "+" not in text  # no version that one registry alone has


def test_every_installation_is_by_digest_from_a_lock() -> None:
    runs = [i.text for stage in DOCKERFILE.stages.values() for i in stage.all("RUN") if " install " in i.text]
    for text in runs:
        ours = "--no-index" in text  # the wheel that was built from these sources
        assert ours or ("--require-hashes" in text and "--no-deps" in text), text


def test_a_lock_has_the_wheel_of_each_processor() -> None:
    def entry(name: str, version: str, digest: str) -> dict[str, Any]:
        archive = {"archive_info": {"hashes": {"sha256": digest}}}
        return {"metadata": {"name": name, "version": version}, "download_info": archive}

    text = lock.lock_text("cpu", [[entry("B_b", "2", "1a"), entry("a", "1", "2b")], [entry("b.b", "2", "0c")]])
    assert text.splitlines()[1:] == [
        *("a==1 \\", "    --hash=sha256:2b"),
        *("b-b==2 \\", "    --hash=sha256:0c \\", "    --hash=sha256:1a"),
    ]
    assert dict(lock.pins(text)) == {"a": "1", "b-b": "2"}
    with pytest.raises(SystemExit, match="b would be 1 on one processor and 2 on another"):
        lock.lock_text("cpu", [[entry("b", "1", "1a")], [entry("b", "2", "1a")]])


def test_what_two_packages_have_is_taken_from_the_newer() -> None:
    assert pins("last") == {lock.LAST: pins("cpu")[lock.LAST]} == {lock.LAST: pins("cuda")[lock.LAST]}
    assert pins("last") == {lock.LAST: pins("train")[lock.LAST]}
    for target in TARGETS:
        (places,) = [
            [i.text.split()[-1] for i in DOCKERFILE.stages[f"install-{target}"].all("RUN") if "--requirement" in i.text]
        ]
        assert places == [f"deploy/{target}.txt", "deploy/last.txt"]


def test_the_locks_agree_on_all_but_the_runtime() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name: cuda[name] for name in cpu if name in cuda} == {
        name: version for name, version in cpu.items() if name != "onnxruntime"
    }


@pytest.mark.slow
def test_its_install_commands_give_a_guard_that_starts(side: Callable[[str], Path]) -> None:
    # .side/cpu is what `make side` made of the RUN lines of install-cpu, with /opt/guard put there; see tests/side.py.
    programs = side("cpu")
    (entry,) = last("cpu", "ENTRYPOINT").words
    held = json.loads(run(programs / "python", "-c", HELD))
    assert held.pop("inference-guard")
    assert held == pins("cpu")
    for arguments in (["--help"], [*last("cpu", "CMD").words, "--help"]):
        assert "Usage" in run(programs / entry, *arguments)


def test_every_door_of_the_image_opens(side: Callable[[str], Path]) -> None:
    """Checks that spans can be exported beside Envoy's messages, whose packages have files of the same names."""
    assert run(side("cpu") / "python", "-W", "error", "-c", DOORS) == "opened\n"


@pytest.mark.slow
def test_the_list_of_packages_is_the_lock(side: Callable[[str], Path], tmp_path: Path) -> None:
    """Runs the instruction that makes the list, as it stands in the Dockerfile; the tool validates what it wrote."""
    (command,) = [i.text for i in DOCKERFILE.stages["list-cpu"].all("RUN")]
    command = command.replace("/opt/sbom", str(side("sbom").parent)).replace("/opt/guard", str(side("cpu").parent))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    listed = json.loads((tmp_path / "guard.cdx.json").read_text("utf-8"))
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    assert listed["metadata"]["component"]["name"] == "inference-guard"
    found = {lock.canonical(one["name"]): (one["version"], one["purl"]) for one in listed["components"]}
    assert found == {name: (version, f"pkg:pypi/{name}@{version}") for name, version in pins("cpu").items()}


@pytest.mark.parametrize("target", SERVING)
def test_the_guard_knows_the_settings_of_the_image(target: str) -> None:
    config = load_config(None, environment(target), {})
    assert config.bundle == "/bundle"
    assert config.device == target
    exposed = last(target, "EXPOSE").words
    assert exposed == [address.rpartition(":")[2] for address in (ServeConfig.listen, ServeConfig.metrics_listen)]
    assert health_check(target)[:2] == ["guard", "probe"]


def health_check(target: str) -> list[str]:
    """The words of the image's own health check."""
    return dockerfile.Instruction("CMD", last(target, "HEALTHCHECK").text.partition("CMD ")[2]).words


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables by which a guard speaks TLS to its clients."""
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    return {"GUARD_TLS_CERTIFICATE": str(folder / "chain.pem"), "GUARD_TLS_KEY": str(folder / "key.pem")}


@pytest.mark.parametrize("by", ["flag", "variable", "file"])
def test_the_health_check_is_true_of_a_live_guard(
    by: str, tls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With TLS, at addresses of its own, and while its model server is away, which a restart would not cure."""
    bundle = tiny_bundle.make(tmp_path / "bundle").path
    metrics = f"127.0.0.1:{free_port()}"
    words = [f"--bundle={bundle}", "--upstream=127.0.0.1:9", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]
    words += [f"--metrics-listen={metrics}"] if by == "flag" else []
    if by == "file":
        (tmp_path / "guard.toml").write_text(f'metrics_listen = "{metrics}"\n', "utf-8")
        words.append("--config=guard.toml")
    variables = {**os.environ, **tls, "PYTHONPATH": str(ROOT)}
    variables |= {"GUARD_METRICS_LISTEN": metrics} if by == "variable" else {}
    command = [sys.executable, "-m", "guard", "serve", *words]
    here: list[Process] = []
    monkeypatch.setattr(Machine, "processes", lambda _: iter(here))
    check = health_check("cpu")[1:]
    assert cli.run(check) == 10
    assert "no guard runs here" in capfd.readouterr().err
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables, cwd=tmp_path) as popen:
        try:
            here.append(Process(popen.pid, tuple(command)))
            Started(popen, []).until_event("listening")
            assert cli.run(check) == 0
            with urllib.request.urlopen(f"http://{metrics}/livez") as answer:
                assert answer.status == 200
            with pytest.raises(urllib.error.HTTPError, match="503"):  # not ready, and alive
                urllib.request.urlopen(f"http://{metrics}/readyz")
            popen.send_signal(signal.SIGSTOP)
            assert cli.run([*check, "--timeout=0.3"]) == 10
            assert f"metrics_listen {metrics} of process {popen.pid}" in capfd.readouterr().err
        finally:
            popen.kill()


def test_a_probe_has_one_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["probe", "--local", "127.0.0.1:1"]) == 2
    assert cli.run(["probe"]) == 2
    assert "HOST:PORT, unix:PATH or --local" in capsys.readouterr().err


def test_the_reader_reads() -> None:
    stage = DOCKERFILE.stages["install-cpu"]
    assert stage.parent == "install"
    assert [i.name for i in stage.instructions] == ["COPY", "RUN", "RUN", "COPY", "COPY", "RUN", "RUN", "RUN"]
    assert list(DOCKERFILE.stages)[-1] == "cpu"  # what a plain `docker build .` gives


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
