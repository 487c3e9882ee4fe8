"""Reads a Dockerfile: enough of it to run its install stages without a Docker engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction, e.g. COPY with what follows it; lines ended by a backslash are joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The JSON form's items, or else the words as a shell splits them."""
        return [str(word) for word in json.loads(self.text)] if self.text.startswith("[") else shlex.split(self.text)


@dataclass(frozen=True)
class Stage:
    """`FROM parent AS name` and the instructions below it."""

    name: str
    parent: str
    instructions: tuple[Instruction, ...]

    def all(self, name: str) -> list[Instruction]:
        return [i for i in self.instructions if i.name == name]


@dataclass(frozen=True)
class Dockerfile:
    """The stages in the order in which they are written."""

    stages: dict[str, Stage]
    arguments: dict[str, str]  # ARG NAME=DEFAULT above the first stage

    def lineage(self, target: str) -> tuple[Instruction, ...]:
        """Every instruction that shapes `target`, its parents' first."""
        stage = self.stages[target]
        above = self.lineage(stage.parent) if stage.parent in self.stages else ()
        return above + stage.instructions

    def image(self, target: str) -> str:
        """The public image that `target` is built on."""
        stage = self.stages[target]
        if stage.parent in self.stages:
            return self.image(stage.parent)
        return re.sub(r"\$\{(\w+)\}", lambda found: self.arguments[found[1]], stage.parent)


def read(file: Path) -> Dockerfile:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    current = ""
    for line in filter(None, (line.strip() for line in whole.splitlines())):
        name, _, text = line.partition(" ")
        if name.upper() == "FROM":
            parent, _, current = re.split(r"\s+", text)
            stages[current] = Stage(current, parent, ())
        elif not current:  # an ARG
            key, _, value = text.partition("=")
            arguments[key] = value
        else:
            old = stages[current]
            stages[current] = Stage(current, old.parent, (*old.instructions, Instruction(name.upper(), text.strip())))
    return Dockerfile(stages, arguments)


def ignored(path: str, patterns: list[str]) -> bool:
    """Does .dockerignore keep `path` (relative, with /) out of the context? The last pattern that matches decides."""
    verdict = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for pattern in patterns:
        bare = pattern.removeprefix("!").rstrip("/")
        names = [
            part for parent in parents for part in (parent, parent.rsplit("/", 1)[-1] if "**/" in bare else parent)
        ]
        if any(fnmatch(name, bare.removeprefix("**/")) for name in names):
            verdict = not pattern.startswith("!")
    return verdict


def copy(instruction: Instruction, *, context: Path, ignore: list[str], target: Path) -> list[Path]:
    """Carry out a COPY from the build context into `target`; returns the files that came, relative to the context."""
    *sources, destination = instruction.words
    came = []
    for source in sources:
        found = context / source
        files = sorted(f for f in found.rglob("*") if f.is_file()) if found.is_dir() else [found]
        for file in files:
            name = file.relative_to(context).as_posix()
            if ignored(name, ignore):
                continue
            inside = file.relative_to(found) if found.is_dir() else Path(file.name)
            many = destination.endswith("/") or found.is_dir()
            goal = target / destination / inside if many else target / destination
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, goal)
            came.append(file.relative_to(context))
    return came


def patterns(file: Path) -> list[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
