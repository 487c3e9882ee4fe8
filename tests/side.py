"""Side environments: other people's clients and tools, and installations of ours that have to stand alone.

    python -m tests.side             build those whose lock changed (`make side`)
    python -m tests.side triton      only this one
    python -m tests.side all         every one, the large ones among them (`make long`)
    python -m tests.side art         a shelf: packages that are read beside the main environment's own
    python -m tests.side prometheus  packages of Debian's, unpacked below .side and not installed

Rule 1: an environment holds what its lock says and nothing else: every version pinned, dependencies included.
Rule 2: only this command uses the network. Inside pytest `ready` answers, or says what to type.
Rule 3: the stamp is written last, so a build that was interrupted starts over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import dockerfile

ROOT = Path(__file__).resolve().parent.parent
SIDE = ROOT / ".side"
# From tests/side/NAME.txt.
LOCKED = ("triton", "mlserver", "kserve", "sklearn", "stubs", "kubectl", "helm", "crds", "oldest", "signing")
# Likewise, but without an interpreter and what the main environment has. What tests read is built with the others, what
# benchmarks read when it is asked for.
SHELVES = (
    "zoo",
    "h2",
    "efficientnet",
    "art",
    "attacks",
    "models",
    "keras",
    "rapidocr",
    "envoy",
    "otlp",
    "grpcurl",
    "cloudevents",
    "promql",
    "oras",
    "mlflow-client",
    "ray",
)
TESTED = ("zoo", "h2", "attacks", "otlp", "grpcurl", "cloudevents", "promql")
UNPACKED = ("prometheus", "registry")  # from Debian's archive
SERVERS = ("mlflow", "checkov", "audit")  # with an interpreter, as LOCKED, but large: built by name alone
SHIPPED = ("sbom",)  # as LOCKED, from a lock that the images are made with
IMAGE = "cpu"  # from the Dockerfile's stage install-cpu, as it stands there: what the image holds, without an engine
INSTALLED = "/opt/guard"  # where the image has it
BUILDER = "/opt/build"  # what installs it


class StaleError(RuntimeError):
    """The environment is missing, or its lock has changed since it was built."""


def main(names: list[str]) -> None:
    """Build what is named, or all that is stale."""
    known = (*LOCKED, *SHIPPED, *SERVERS, IMAGE, *SHELVES, *UNPACKED)
    names = list(known) if names == ["all"] else names
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"unknown side environment {unknown[0]!r}; there are {', '.join(known)}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pip waits for the network, then unpacks on one core
        for line in pool.map(told, names or (*LOCKED, *SHIPPED, IMAGE, *TESTED)):
            print(line, flush=True)


def told(name: str) -> str:
    """Build what has this name, and say what it took."""
    began = time.monotonic()
    built = build(name)
    return f"side environment {name}: {f'built in {time.monotonic() - began:.0f} s' if built else 'up to date'}"


def build(name: str) -> bool:
    """Build what has this name; False when it is up to date."""
    if name == IMAGE:
        return replay_image(network=True)
    if name in SHELVES:
        return build_shelf(name)
    return build_unpacked(name) if name in UNPACKED else build_locked(name)


def ready(name: str) -> Path:
    """The folder of the environment's programs (python, guard, kubectl, ...).

    The package in `cpu` is installed anew when its sources changed: that needs no network.

    Raises:
        StaleError: it has to be built first.
    """
    if name == IMAGE:
        replay_image(network=False)
    elif stamp(name) != locked_key(name):
        cure = f"python -m tests.side {name}" if name in SERVERS else "make side"
        raise StaleError(f".side/{name} is missing or stale; run: {cure}")
    return SIDE / name / "bin"


def build_locked(name: str) -> bool:
    """Build `name` from its lock; False when it is up to date."""
    key = locked_key(name)
    if stamp(name) == key:
        return False
    shutil.rmtree(SIDE / name, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(SIDE / name)])
    pip = [str(SIDE / name / "bin" / "python"), "-m", "pip"]
    run([*pip, "install", "--quiet", "--no-deps", "--requirement", str(lock(name))])
    run([*pip, "check"])
    write_stamp(name, key)
    return True


def build_shelf(name: str) -> bool:
    """Lay the packages of a shelf's lock down, without what they depend on; False when it is up to date."""
    key = locked_key(name)
    if stamp(name) == key:
        return False
    shutil.rmtree(SIDE / name, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(SIDE / name)]
    run([*pip, "--requirement", str(lock(name))])
    write_stamp(name, key)
    return True


def build_unpacked(name: str) -> bool:
    """Unpack Debian's packages of a lock, `NAME=VERSION SHA256` a line; False when it is up to date.

    Lists and archives of the package manager lie in a folder of their own: nothing of the system's is changed.
    """
    key = locked_key(name)
    if stamp(name) == key:
        return False
    shutil.rmtree(SIDE / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for kept in ("lists/partial", "archives/partial"):
            (Path(folder) / kept).mkdir(parents=True)
        places = {"Dir::State::Lists": "lists", "Dir::Cache": "", "Dir::Cache::Archives": "archives"}
        options = [part for option, place in places.items() for part in ("-o", f"{option}={folder}/{place}")]
        apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=", *options]
        run([*apt, "update"])
        for line in lock(name).read_text("utf-8").splitlines():
            if line.startswith("#") or not line:
                continue
            package, digest = line.split()
            run([*apt, "download", package], folder=Path(folder))
            (file,) = Path(folder).glob(f"{package.partition('=')[0]}_*.deb")
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != digest:
                raise SystemExit(f"{file.name} has SHA-256 {found}, and {lock(name).name} says {digest}")
            run(["dpkg", "-x", str(file), str(SIDE / name)])
    write_stamp(name, key)
    return True


def reach(name: str) -> None:
    """Let the packages of a shelf be imported here, after the main environment's own.

    Raises:
        StaleError: it has to be built first.
    """
    if (folder := str(shelf(name))) not in sys.path:
        sys.path.append(folder)


def shelf(name: str) -> Path:
    """The folder of a shelf's packages, or of what was unpacked, for those that are run and never imported here.

    Raises:
        StaleError: it has to be built first.
    """
    if stamp(name) != locked_key(name):
        cure = "make side" if name in TESTED else f"python -m tests.side {name}"
        raise StaleError(f".side/{name} is missing or stale; run: {cure}")
    return SIDE / name


def replay_image(*, network: bool) -> bool:
    """Run the RUN instructions of install-cpu from the first whose inputs changed; False when none did.

    The steps that install our own package never need the network.

    Raises:
        StaleError: more than the package has changed, and there is no network.
    """
    home = SIDE / IMAGE
    with tempfile.TemporaryDirectory() as folder:
        steps = image_steps(Path(folder))
        done = stamp(IMAGE).split()
        first = next((n for n, step in enumerate(steps) if done[n : n + 1] != [step.key]), len(steps))
        if first == len(steps):
            return False
        if not steps[first].package:
            if not network:
                raise StaleError(f".side/{IMAGE} is missing or stale; run: make side")
            shutil.rmtree(home, ignore_errors=True)
            first = 0
        else:
            write_stamp(IMAGE, " ".join(step.key for step in steps[:first]))
        shutil.rmtree(home / "build" / "dist", ignore_errors=True)  # the wheel of an earlier version
        for step in steps[first:]:
            command = step.command.replace("python -m venv", f"{sys.executable} -m venv")
            command = command.replace(BUILDER, str(home / "build")).replace(INSTALLED, str(home))
            offline = {"PIP_NO_INDEX": "1"} if step.package else {}
            run(["sh", "-ec", command], folder=Path(folder), environment=offline)
        write_stamp(IMAGE, " ".join(step.key for step in steps))
    return True


@dataclass(frozen=True)
class Step:
    """A RUN of the image's installation; its key covers every instruction and copied file up to it."""

    command: str
    key: str
    package: bool  # our own sources are there: nothing is fetched any more


def image_steps(context: Path) -> list[Step]:
    """The RUNs of install-cpu, in order; its COPYs are carried out into `context`."""
    ignore = dockerfile.patterns(ROOT / ".dockerignore")
    steps: list[Step] = []
    package = False
    digest = hashlib.sha256(sys.version.encode())
    for instruction in dockerfile.read(ROOT / "Dockerfile").lineage("install-cpu"):
        digest.update(f"{instruction.name} {instruction.text}\n".encode())
        if instruction.name == "COPY":
            package |= "guard" in instruction.words
            for file in dockerfile.copy(instruction, context=ROOT, ignore=ignore, target=context):
                digest.update(f"{file}\n".encode() + (ROOT / file).read_bytes())
        elif instruction.name == "RUN":
            steps.append(Step(instruction.text, digest.hexdigest(), package))
    return steps


def lock(name: str) -> Path:
    return (ROOT / "deploy" if name in SHIPPED else ROOT / "tests" / "side") / f"{name}.txt"


def locked_key(name: str) -> str:
    return hashlib.sha256(sys.version.encode() + lock(name).read_bytes()).hexdigest()


def stamp(name: str) -> str:
    file = SIDE / name / "side-stamp"
    return file.read_text("utf-8") if file.exists() else ""


def write_stamp(name: str, key: str) -> None:
    (SIDE / name / "side-stamp").write_text(key, encoding="utf-8")


def run(command: list[str], *, folder: Path = ROOT, environment: dict[str, str] | None = None) -> None:
    """Run it; on failure show all it said and stop."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **quiet, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\nfailed with exit code {done.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
