"""What `pip install inference-guard[cpu]` gives, and the image: the whole package, no torch, what serves imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_layers import EXTRAS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = {  # the pages beside the code are for those who have its sources
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "guard").rglob("*")
    if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md"
}
SERVING = sorted(
    file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for file in SOURCES
    if file.endswith(".py") and not file.startswith(("guard/offline/", *EXTRAS)) and not file.endswith("__main__.py")
)
# A line of a lock: of a Python package, or of one of Debian's with the SHA-256 of its archive.
PYTHONS, DEBIANS = r"[\w.-]+==[\w.]+", r"[\w.+-]+=[\w.:~+-]+ [0-9a-f]{64}"
INSTALLED = """
import importlib.metadata as installed, json
files = [str(file) for file in installed.files("inference-guard")]
print(json.dumps([files, [one.metadata["Name"] for one in installed.distributions()]]))
"""
IMPORT_ALL = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps([name for name in ("torch", "sklearn", "onnx", "guard.offline") if name in sys.modules]))
"""


def python(program: Path, *arguments: str, folder: Path = ROOT) -> str:
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_cpu_extra_installs_the_whole_package_and_no_torch(side: Callable[[str], Path], tmp_path: Path) -> None:
    shown = python(side("cpu") / "python", "-c", INSTALLED, folder=tmp_path)
    files, packages = json.loads(shown)
    assert {name for name in files if name.startswith("guard/") and "__pycache__" not in name} == SOURCES
    assert not {"torch", "scikit-learn", "onnx", "pip"} & set(packages)


@pytest.mark.parametrize("name", ["cpu", "oldest"])
def test_everything_but_the_offline_tower_imports(name: str, side: Callable[[str], Path], tmp_path: Path) -> None:
    # In `cpu` from what is installed; in `oldest` (protobuf 6, the lower bounds) from this tree.
    folder = tmp_path if name == "cpu" else ROOT
    programs = side(name)
    assert python(programs / "python", "-W", "error", "-c", IMPORT_ALL, json.dumps(SERVING), folder=folder) == "[]\n"


def test_the_oldest_environment_is_the_lower_bounds(root: Path) -> None:
    pinned = (root / "tests/side/oldest.txt").read_text("utf-8").lower().replace("_", "-")
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]:
        name, low = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert re.search(rf"^{name}=={re.escape(low)}(\.0)*$", pinned, re.MULTILINE), line


def test_runtime_and_torch_are_extras_and_the_runtimes_exclude_each_other() -> None:
    base = " ".join(PROJECT["dependencies"])
    assert "onnxruntime" not in base
    assert "torch" not in base
    extras = PROJECT["optional-dependencies"]
    runtimes = {name: [line for line in lines if line.startswith("onnxruntime")] for name, lines in extras.items()}
    assert [name for name, found in runtimes.items() if found] == ["cpu", "gpu"]
    assert runtimes["gpu"][0].startswith("onnxruntime-gpu[cuda,cudnn]")


def test_every_side_environment_is_locked_to_the_last_digit(root: Path) -> None:
    locks = [*(root / "tests/side").glob("*.txt")]
    assert len(locks) >= 7
    for lock in locks:
        first, *lines = lock.read_text("utf-8").splitlines()
        assert first.startswith("# "), f"{lock} should say what it is for"
        assert not [line for line in lines if not re.fullmatch(rf"{PYTHONS}|{DEBIANS}", line)], lock


def test_the_pages_beside_the_code_are_in_the_source_distribution(tmp_path: Path) -> None:
    pages = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "guard").rglob("*.md"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "guard/__init__.py", *pages):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; build_meta.build_sdist('.')"
    python(Path(sys.executable), "-c", build, folder=tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert pages
    assert set(pages) <= names
