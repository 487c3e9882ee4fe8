"""Locks of the images: every wheel that an image installs, by version and SHA-256, for each of its processors.

    python -m tests.lock                 all of them, with the versions that they have; what is new gets the newest
    python -m tests.lock cpu --upgrade   one, with the newest versions that pyproject.toml allows

Rule 1: a lock comes from pip's own resolution, and pip installs from it with --require-hashes and --no-deps.
Rule 2: wheels only: nothing is built while an image is built but this package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOORS = ("rest", "envoy", "otel", "sign")  # one lock serves every door: which are open is a setting
EXTRAS = {
    "cpu": ("cpu", *DOORS),
    "cuda": ("gpu", *DOORS),
    "train": ("cpu", "offline", "tables", "registry", "mlflow", "ray", *DOORS),
}
TOOLS = {"build": ("pip", "setuptools"), "sbom": ("cyclonedx-bom[validation]",)}
LAST = "opentelemetry-proto"
PROCESSORS = {"cuda": ("x86_64",), "train": ("x86_64",)}  # as far as the CUDA packages go; all others: both
BOTH = ("x86_64", "aarch64")
PYTHON = "3.11"  # of the images
NEWEST_GLIBC = 36  # 2.36, of Debian 12: no wheel that needs a newer one
HEADS = {
    "cpu": "What the image of `--target cpu` holds",
    "cuda": "What the image of `--target cuda` holds",
    "train": "What the image of `--target train` holds",
    "build": "What builds the images, and is in none of them",
    "sbom": "What lists the images' packages, and is in none of them",
    "last": "What is installed once more after cpu, cuda and train: xds-protos has older files of the same names",
}


def main(arguments: Sequence[str]) -> None:
    """Write the locks that are named, or all."""
    parser = argparse.ArgumentParser(description="Write the locks of the images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*EXTRAS, *TOOLS))}; all unless given")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in (*EXTRAS, *TOOLS)]:
        parser.error(f"no lock is called {unknown[0]!r}; there are {', '.join((*EXTRAS, *TOOLS))}")
    for name in given.names or (*EXTRAS, *TOOLS):
        file = DEPLOY / f"{name}.txt"
        kept = {} if given.upgrade or not file.exists() else dict(pins(file.read_text("utf-8")))
        reports = [resolve(wanted(name), kept, processor) for processor in PROCESSORS.get(name, BOTH)]
        file.write_text(lock_text(name, reports), encoding="utf-8")
        if name == "cpu":
            (DEPLOY / "last.txt").write_text(lock_text("last", [only(report, LAST) for report in reports]), "utf-8")
        print(f"{file.relative_to(ROOT)}: {len(dict(pins(file.read_text('utf-8'))))} packages")


def wanted(name: str) -> list[str]:
    """The requirements that a lock answers."""
    if name in TOOLS:
        return list(TOOLS[name])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [
        *project["dependencies"],
        *(one for extra in EXTRAS[name] for one in project["optional-dependencies"][extra]),
    ]


def resolve(requirements: Sequence[str], kept: Mapping[str, str], processor: str) -> list[Mapping[str, Any]]:
    """What pip would install on Linux with that processor: an entry a package. Versions in `kept` stay."""
    tags = [f"manylinux_2_{minor}_{processor}" for minor in range(5, NEWEST_GLIBC + 1)]
    tags += [f"manylinux{year}_{processor}" for year in (2010, 2014)]
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), "utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--target", folder, "--only-binary", ":all:"]
        command += ["--constraint", str(constraints), "--python-version", PYTHON, "--implementation", "cp"]
        command += [word for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
        command += [word for tag in tags for word in ("--platform", tag)]
        # Nothing of this machine's: its configuration, and wheels that lie on it, are nobody else's.
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
        done = subprocess.run([*command, *requirements], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip finds no versions for {processor} that fit:\n{done.stderr}")
        found: list[Mapping[str, Any]] = json.loads(report.read_text("utf-8"))["install"]
    return found


def lock_text(name: str, reports: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Write a lock: its packages in order, each with the wheel of every processor.

    Raises:
        SystemExit: the processors need different versions.
    """
    versions: dict[str, str] = {}
    hashes: dict[str, set[str]] = {}
    for entry in (entry for report in reports for entry in report):
        package, version = canonical(entry["metadata"]["name"]), entry["metadata"]["version"]
        if versions.setdefault(package, version) != version:
            raise SystemExit(f"{package} would be {versions[package]} on one processor and {version} on another")
        hashes.setdefault(package, set()).add(entry["download_info"]["archive_info"]["hashes"]["sha256"])
    text = f"# {HEADS[name]}, Python {PYTHON} on Linux; written by tests/lock.py.\n"
    for package in sorted(versions):
        text += f"{package}=={versions[package]}"
        text += "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[package])) + "\n"
    return text


def only(report: Sequence[Mapping[str, Any]], package: str) -> list[Mapping[str, Any]]:
    return [entry for entry in report if canonical(entry["metadata"]["name"]) == package]


def pins(text: str) -> Iterator[tuple[str, str]]:
    """The packages of a lock, each with its version."""
    for line in text.splitlines():
        if found := re.match(r"([A-Za-z0-9._-]+)==([^\s\\;]+)", line):
            yield canonical(found[1]), found[2]


def canonical(name: str) -> str:
    """A package's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(sys.argv[1:])
