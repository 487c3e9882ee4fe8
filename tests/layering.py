"""Reads who imports whom in `guard/`, for the tests of the house and for whoever wants to see it.

python -m tests.layering            files, floors, arrows and circles, now
python -m tests.layering CHECKOUT   of another checkout: before and after
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Import:
    """One imported module, with the line and whether it is imported only when a function runs."""

    module: str
    line: int
    lazy: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@cache
def imports(source: str, *, package: str = "guard") -> tuple[Import, ...]:
    """Every import of a source file, `importlib.import_module("...")` among them; `from a import b` reads a.b too."""

    def walk(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                yield from (Import(name.name, child.lineno, lazy) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")
                    base = ".".join([*parts[: len(parts) - child.level + 1], *filter(None, [base])])
                yield from (Import(f"{base}.{name.name}", child.lineno, lazy) for name in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                named = child.args[0] if child.args else None
                if isinstance(named, ast.Constant):
                    yield Import(str(named.value), child.lineno, lazy)
            yield from walk(child, lazy=inside)

    return tuple(walk(ast.parse(source), lazy=False))


def module_of(file: str) -> str:
    """`guard/a/b.py` as `guard.a.b`; a package's `__init__.py` as the package."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(file: str) -> str:
    return ".".join(file.removesuffix(".py").split("/")[:-1])


@dataclass(frozen=True)
class House:
    """The source files below `guard/`, by their paths."""

    sources: Mapping[str, str]

    @staticmethod
    def read(root: Path = ROOT) -> House:
        files = sorted((root / "guard").rglob("*.py"))
        return House({file.relative_to(root).as_posix(): file.read_text("utf-8") for file in files})

    @cached_property
    def files(self) -> dict[str, str]:
        """Module -> file."""
        return {module_of(file): file for file in self.sources}

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """Which modules each module imports, at once or when a function runs."""
        return {
            module: {
                found
                for one in imports(self.sources[file], package=package_of(file))
                if (found := self.named(one.module)) is not None and found != module
            }
            for module, file in self.files.items()
        }

    def named(self, imported: str) -> str | None:
        """The module of ours that an import reads: `guard.a.b.Name` is `guard.a.b`."""
        while imported:
            if imported in self.files:
                return imported
            imported = imported.rpartition(".")[0]
        return None

    @cached_property
    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or through others."""
        return sorted(sorted(group) for group in strongly_connected(self.arrows) if len(group) > 1)

    @cached_property
    def floors(self) -> dict[str, int]:
        """How many modules lie below each, on the longest way down; those of a circle share a floor."""
        group_of = {module: number for number, group in enumerate(self.groups) for module in group}
        heights: dict[int, int] = {}
        for number, group in enumerate(self.groups):  # those below come first
            below = {group_of[target] for module in group for target in self.arrows[module]} - {number}
            heights[number] = 1 + max((heights[one] for one in below), default=-1)
        return {module: heights[number] for module, number in group_of.items()}

    @cached_property
    def groups(self) -> list[list[str]]:
        return strongly_connected(self.arrows)

    def loose(self, package: str = "guard/offline") -> list[str]:
        """Source files that lie in a package itself and in none of its own."""
        return [file for file in self.sources if Path(file).parent.as_posix() == package and "__init__" not in file]


def strongly_connected(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Tarjan's groups, each after all that it reaches (Depth-first search and linear graph algorithms, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            cut = stack.index(node)
            groups.append(stack[cut:])
            del stack[cut:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return groups


def by_rooms(house: House) -> House:
    """The same house, each package one room with all that lies in it; `offline` and its `model` are whole floors.

    A file in `guard/` or `guard/offline` itself is a room of its own.
    """

    def room(module: str) -> str:
        package = package_of(house.files[module])
        if package in ("guard", "guard.offline"):
            return module
        deep = 4 if package.startswith("guard.offline.model") else 3 if package.startswith("guard.offline") else 2
        return ".".join(package.split(".")[:deep])

    arrows: dict[str, set[str]] = {}
    for module, targets in house.arrows.items():
        arrows.setdefault(room(module), set()).update(map(room, targets))
    return House(
        {
            f"{name.replace('.', '/')}.py": "\n".join(f"import {target}" for target in sorted(targets - {name}))
            for name, targets in arrows.items()
        }
    )


def main(arguments: list[str]) -> None:
    house = House.read(Path(arguments[0]).resolve() if arguments else ROOT)
    print(f"{len(house.loose())} files lie loose in guard/offline")
    for name, found in (("files", house), ("rooms", by_rooms(house))):
        arrows = sum(len(targets) for targets in found.arrows.values())
        floors = 1 + max(found.floors.values())
        print(f"{len(found.sources):4} {name} on {floors} floors, {arrows} arrows, {len(found.circles)} circles")
        for circle in found.circles:
            print(f"     {' '.join(circle)}")


if __name__ == "__main__":
    main(sys.argv[1:])
