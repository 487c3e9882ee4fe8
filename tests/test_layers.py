"""The import law: two towers on one ground floor, and nothing reaches sideways or up."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.layering import ROOT, imports

FILES = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "guard").rglob("*.py"))
# These see both towers, but open one only when it is asked for.
ROOF = {
    "guard/__main__.py",
    "guard/bundle_commands.py",
    "guard/explain_command.py",
    "guard/cli.py",
    "guard/demo.py",
    "guard/doctor_commands.py",
    "guard/delivery_commands.py",
    "guard/offline_commands.py",
    "guard/option_values.py",
    "guard/options.py",
    "guard/summary.py",
}
LARGEST = 2_000_000  # bytes of a tracked file

# What a distribution of pyproject.toml is called when it is imported.
IMPORTED_AS = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "grpcio-status": "grpc_status",
    "onnxruntime-gpu": "onnxruntime",
    "opentelemetry-api": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "scikit-learn": "sklearn",
    "Pillow": "PIL",
}
# Not certain to be there: these are imported inside the functions that need them.
LAZY = {
    "guard/session.py": {"onnxruntime"},
    "guard/pictures.py": {"PIL"},
    **{f"guard/arrow_{part}.py": {"pyarrow"} for part in ("files", "order", "values")},  # the extra [tables]
    "guard/serve/envoy/messages.py": {"envoy"},  # the extra [envoy]
    "guard/signing.py": {"cryptography"},  # the extra [sign]
    "guard/oci/registry.py": {"oras", "requests"},  # the extra [registry]
    "guard/tracking.py": {"mlflow"},  # the extra [mlflow]
    "guard/offline/attacks/adapter.py": {"foolbox", "pyautoattack"},  # the extra [attacks]
    **{f"guard/offline/work/ray_{part}.py": {"ray"} for part in ("cluster", "task")},  # the extra [ray]
}
EXTRAS = {"guard/serve/rest/": "rest"}  # rooms that may import what an extra installs, and are opened lazily
UNSAFE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SENDS = "guard/offline/work/shipping.py"  # from one process of a run to another, through a cluster's memory: no file


def floor(file: str) -> str:
    """serve, offline, roof or ground; a new file or package in guard/ itself belongs to the ground floor."""
    parts = file.split("/")
    if file in ROOF:
        return "roof"
    return parts[1] if parts[1] in ("serve", "offline") else "ground"


def floor_of_module(module: str) -> str:
    """The floor that `guard.x.y` stands on; `guard` itself is ground."""
    name = module.partition(".")[2].partition(".")[0]
    return "roof" if f"guard/{name}.py" in ROOF else name if name in ("serve", "offline") else "ground"


def third_party(floor_name: str) -> set[str]:
    """Packages that a floor may import, from pyproject.toml; the serving tower gets what [cpu] installs, no more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    serving = project["dependencies"] + extras["cpu"]
    lines = {"ground": ["numpy"], "serve": serving, "roof": serving, "offline": serving + extras["offline"]}[floor_name]
    names = [line.split(";")[0].split("[")[0] for line in lines]
    bare = [name[: min([name.find(c) for c in "<>=!~" if c in name] or [len(name)])].strip() for name in names]
    return {IMPORTED_AS.get(name, name) for name in bare}


def room(path: str) -> str | None:
    """The room of an extra that a file lies in, or a module (`guard.serve.rest.app` as `guard/serve/rest/app`)."""
    return next((room for room in EXTRAS if f"{path}/".startswith(room)), None)


def of_extra(room: str | None) -> set[str]:
    """Packages that a room may import, beside those of its floor."""
    if room is None:
        return set()
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    return {re.split(r"[<>=!~\[;]", line)[0].strip() for line in lines[EXTRAS[room]]}


def breaches(file: str, source: str) -> list[str]:
    """What in this file breaks the law, one line each."""
    here = floor(file)
    found = []
    extra = of_extra(room(file))
    for one in imports(source, package=".".join(file.removesuffix(".py").split("/")[:-1])):
        if one.top == "guard":
            there = floor_of_module(one.module)
            allowed = {
                "ground": {"ground"},
                "serve": {"ground", "serve"},
                "offline": {"ground", "offline"},
                "roof": {"ground", "roof", *(("serve", "offline") if one.lazy else ())},
            }[here]
            inside = room(one.module.replace(".", "/"))
            if inside not in (None, room(file)) and not one.lazy:
                found.append(f"{file}:{one.line} imports {one.module} at import time, which takes an extra")
            if there not in allowed:
                found.append(f"{file}:{one.line} {here} imports {one.module} ({there})")
        elif one.top in UNSAFE and (file, one.top) != (SENDS, "pickle"):
            found.append(f"{file}:{one.line} imports {one.module}: an artefact must never run code")
        elif one.top not in sys.stdlib_module_names:
            lazily = LAZY.get(file, set()) if one.lazy else set()
            if here == "roof" and one.lazy:
                lazily = third_party("offline")
            if one.top not in third_party(here) | lazily | extra:
                found.append(f"{file}:{one.line} {here} imports {one.module}{'' if one.lazy else ' at import time'}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_only(file: str) -> None:
    assert not breaches(file, (ROOT / file).read_text("utf-8"))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("guard/serve/engine.py", "import torch"),
        ("guard/serve/engine.py", "def f():\n    import torch.nn"),
        ("guard/serve/engine.py", "from guard.offline.compile import compile"),
        ("guard/serve/engine.py", "from guard import offline"),
        ("guard/serve/engine.py", "from ..offline import compile"),
        ("guard/serve/engine.py", "import importlib\nimportlib.import_module('guard.offline')"),
        ("guard/serve/engine.py", "import sklearn.svm"),
        ("guard/serve/server.py", "from guard.serve.rest import listener"),
        ("guard/serve/server.py", "def f():\n    import uvicorn"),
        ("guard/serve/rest/listener.py", "import fastapi"),
        ("guard/serve/grpc/wire/new.py", "import onnx"),
        ("guard/serve/engine.py", "import guard.cli"),
        ("guard/offline/training/fit_heads.py", "def f():\n    from guard.serve import wire"),
        ("guard/policy.py", "import grpc"),
        ("guard/session.py", "import onnxruntime"),
        ("guard/policy.py", "def f():\n    import onnxruntime"),
        ("guard/something_new.py", "import torch"),
        ("guard/something_new.py", "from guard.serve import wire"),
        ("guard/bundle_commands.py", "from guard.serve import server"),
        ("guard/cli.py", "import torch"),
        ("guard/bundle.py", "def f():\n    import pickle"),
    ],
)
def test_the_law_finds_a_breach(file: str, source: str) -> None:
    assert len(breaches(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "guard/serve/engine.py",
            "import grpc\nimport numpy\nfrom guard.runtime import Runtime\nimport guard.serve.grpc.wire",
        ),
        ("guard/serve/engine.py", "from google.rpc import status_pb2\nfrom .wire import x"),
        ("guard/offline/training/fit_heads.py", "import torch\nfrom guard.errors import DataError\nimport sklearn.svm"),
        ("guard/session.py", "def f():\n    import onnxruntime"),
        ("guard/serve/rest/listener.py", "import uvicorn\nfrom guard.serve.rest import app\nimport grpc"),
        ("guard/serve/server.py", "def f():\n    from guard.serve.rest import listener"),
        (
            "guard/offline_commands.py",
            "import typer\ndef f():\n    from guard.offline import fit\n    from guard.serve import server",
        ),
    ],
)
def test_the_law_leaves_honest_files_alone(file: str, source: str) -> None:
    assert breaches(file, source) == []


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_a_noun_of_its_own(file: str) -> None:
    assert not set(Path(file).with_suffix("").parts) & {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def tracked() -> list[Path]:
    """The files of the repository: those git knows, and those that it would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [file for name in listed.stdout.decode().split("\0") if name and (file := ROOT / name).is_file()]


def machine_paths() -> list[bytes]:
    """Where this checkout and its owner happen to live: nobody else has these folders."""
    everybodys = {Path(name) for name in ("/", "/home", "/mnt", "/opt", "/src", "/srv", "/tmp", "/usr", "/usr/local")}
    mine = {ROOT, ROOT.parent, Path.home(), Path(sys.base_prefix)} - everybodys
    return sorted(f"{place}/".encode() for place in mine)


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    places = machine_paths()
    assert f"{ROOT}/".encode() in places
    # Preceded by a name, it is a part of a relative path: a package may be called as a folder of this machine is.
    patterns = [re.compile(rb"(?<![\w.-])" + re.escape(place)) for place in places]
    found = [(str(file), known.pattern) for file in tracked() for known in patterns if known.search(file.read_bytes())]
    assert not found


def test_no_file_is_large() -> None:
    files = tracked()
    assert Path(__file__) in files
    assert not [f"{file} {file.stat().st_size}" for file in files if file.stat().st_size > LARGEST]
