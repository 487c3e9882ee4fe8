"""The image, as far as it can be tried without an engine: its sources, its install commands, its entry point."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.config import ServeConfig, load_config
from tests import dockerfile

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = dockerfile.read(ROOT / "Dockerfile")
IGNORE = dockerfile.patterns(ROOT / ".dockerignore")
TARGETS = {"cpu": "cpu", "cuda": "gpu"}  # --target, and the extra that it installs
COPIES = [i for stage in DOCKERFILE.stages.values() for i in stage.all("COPY") if not i.text.startswith("--from=")]
SOURCES = sorted({source for instruction in COPIES for source in instruction.words[:-1]})


def environment(target: str) -> dict[str, str]:
    """The variables that the image sets."""
    words = [word for i in DOCKERFILE.lineage(target) if i.name == "ENV" for word in i.words]
    return dict(word.split("=", 1) for word in words)


def last(target: str, name: str) -> dockerfile.Instruction:
    return [i for i in DOCKERFILE.lineage(target) if i.name == name][-1]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / f"{name}.txt").read_text("utf-8").splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))


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
def test_it_holds_what_the_build_stage_installed_and_nothing_more(target: str) -> None:
    (came,) = [i for i in DOCKERFILE.lineage(target) if i.name == "COPY"]
    assert came.words == [f"--from=install-{target}", "/opt/guard", "/opt/guard"]
    assert environment(target)["PATH"].startswith("/opt/guard/bin:")
    assert not [i for i in DOCKERFILE.lineage(target) if i.name == "RUN"]
    # A virtual environment points at its interpreter: both stages have to have the same one.
    assert DOCKERFILE.image(target) == DOCKERFILE.image(f"install-{target}")


def test_the_targets_are_installed_the_same_way() -> None:
    cpu, cuda = (DOCKERFILE.stages[f"install-{target}"].instructions for target in TARGETS)
    assert [(i.name, i.text.replace("cpu.txt", "cuda.txt")) for i in cpu] == [(i.name, i.text) for i in cuda]


@pytest.mark.parametrize("target", TARGETS)
def test_the_lock_is_what_pyproject_asks_for_without_torch(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"][TARGETS[target]]
    found = pins(target)
    for line in wanted:
        name, low = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert parts(found[name.lower()]) >= parts(low), line
    assert not {"torch", "scikit-learn", "onnx", "matplotlib", "pytest"} & set(found)
    assert ("onnxruntime" in found, "onnxruntime-gpu" in found) == (target == "cpu", target == "cuda")


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
    listed = run(programs / "python", "-m", "pip", "list", "--format=freeze").lower().replace("_", "-").split()
    held = dict(line.split("==") for line in listed)
    assert held.pop("inference-guard")
    assert {name: held[name] for name in held if name not in ("pip", "setuptools")} == pins("cpu")
    for arguments in (["--help"], [*last("cpu", "CMD").words, "--help"]):
        assert "Usage" in run(programs / entry, *arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_the_guard_knows_the_settings_of_the_image(target: str) -> None:
    config = load_config(None, environment(target), {})
    assert config.bundle == "/bundle"
    assert config.device == target
    exposed = last(target, "EXPOSE").words
    assert exposed == [address.rpartition(":")[2] for address in (ServeConfig.listen, ServeConfig.metrics_listen)]
    check = last(target, "HEALTHCHECK").text.partition("CMD ")[2]
    assert dockerfile.Instruction("CMD", check).words == ["guard", "probe", f"127.0.0.1:{exposed[0]}"]


def test_the_reader_reads() -> None:
    stage = DOCKERFILE.stages["install-cpu"]
    assert stage.parent == "install"
    assert [i.name for i in stage.instructions] == ["COPY", "RUN", "COPY", "COPY", "RUN", "RUN"]
    assert list(DOCKERFILE.stages)[-1] == "cpu"  # what a plain `docker build .` gives


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
