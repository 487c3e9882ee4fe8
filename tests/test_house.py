"""The packages of `guard/offline`, what each may import, and that nothing in `guard/` imports itself by a detour."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layering import ROOT, House, by_rooms

HOUSE = House.read()
OFFLINE = "guard/offline"
FLOORING = {"data", "work"}  # may be imported by every package, as the ground floor `guard/*.py` may
# A package -> those it may import; what they may import it may as well. Packages that are still to come have their row.
MAY_IMPORT: dict[str, set[str]] = {
    "evaluation": {
        *("training", "adversary", "crafting", "programs", "job", "findings"),
        *("attacks", "detectors", "evidence"),
    },
    "preflight": {"evaluation", "crafting", "programs", "second", "job", "evidence", "attacks", "model"},
    "training": {"crafting", "programs", "second", "job", "detectors", "evidence", "model"},
    "second": {"job", "evidence", "networks", "model"},
    "crafting": {"job", "programs", "attacks", "evidence", "model"},
    "adversary": {"programs", "evidence", "detectors", "denoisers", "attacks"},
    "programs": {"detectors", "evidence", "denoisers", "model"},
    "job": {"attacks", "detectors", "denoisers", "model", "closed"},
    "closed": {"model", "networks"},
    "audit": {"report"},
    "report": {"findings"},
    "findings": {"attacks"},
    "bench": set(),
    "detectors": {"evidence", "denoisers", "networks"},
    "evidence": {"model", "denoisers", "networks"},
    "attacks": {"model.gradient", "networks"},
    "model": {"model.graph", "model.gradient", "model.onnx_import", "model.onnx_export"},
    "model.gradient": {"model.graph"},
    "model.graph": set(),
    "model.onnx_import": set(),
    "model.onnx_export": set(),
    "denoisers": {"networks"},
    "networks": set(),
    "data": set(),
    "work": set(),
    "job.presets": set(),  # no code: TOML beside `__init__.py`
    "job.suites": set(),
}
LOOSE = "loose"  # a file in guard/offline itself: it may import all, and a package nothing of it
MOST_LOOSE = 3


def room(house: House, module: str) -> str | None:
    """The package of `guard/offline` that a module belongs to, by its row above; None outside of it."""
    folder = Path(house.files[module]).parent
    if not folder.is_relative_to(OFFLINE):
        return None
    path = ".".join(folder.relative_to(OFFLINE).parts)
    rows = [row for row in MAY_IMPORT if path == row or path.startswith(f"{row}.")]
    return max(rows, key=len, default=path or LOOSE)


def reachable(package: str) -> set[str]:
    """All packages that a package may import."""
    found: set[str] = set()
    ahead = [package]
    while ahead:
        for name in MAY_IMPORT.get(ahead.pop(), set()) - found:
            found.add(name)
            ahead.append(name)
    return found | FLOORING


def breaches(house: House) -> Iterator[tuple[str, str, str]]:
    """Who imports what it may not: two packages, and the import."""
    for module, targets in house.arrows.items():
        for target in targets:
            here, there = room(house, module), room(house, target)
            if here in (None, LOOSE) or there in (None, here):
                continue
            assert here is not None
            assert there is not None
            if there not in reachable(here):
                yield here, there, f"{module} imports {target}"


def test_nothing_imports_itself_by_a_detour() -> None:
    assert HOUSE.circles == []


def test_packages_import_what_lies_below_them() -> None:
    assert list(breaches(HOUSE)) == []


def test_every_package_has_its_row() -> None:
    rooms = {room(HOUSE, module) for module in HOUSE.files} - {None, LOOSE}
    assert rooms <= set(MAY_IMPORT)


def test_the_rows_themselves_go_down_only() -> None:
    for package in MAY_IMPORT:
        above = {other for other in reachable(package) if package in reachable(other)} - FLOORING
        assert above == set()


def test_loose_files_become_fewer() -> None:
    assert len(HOUSE.loose()) <= MOST_LOOSE


def planted(**sources: str) -> House:
    """The house with files added: `guard__offline__data__grid` is `guard/offline/data/grid.py`."""
    return House({**HOUSE.sources, **{f"{name.replace('__', '/')}.py": source for name, source in sources.items()}})


@pytest.mark.parametrize(
    ("file", "source", "pair"),
    [
        ("guard__offline__data__new", "from guard.offline.attacks.pgd import PGD", ("data", "attacks")),
        ("guard__offline__training__new", "import guard.offline.report.page", ("training", "report")),
        ("guard__offline__training__new", "def f():\n    from guard.offline import trial", ("training", "loose")),
        ("guard__offline__model__graph__new", "from guard.offline.model import classifier", ("model.graph", "model")),
        ("guard__offline__detectors__new", "from guard.offline import progress", ("detectors", "loose")),
        ("guard__offline__bench__new", "from ..model.classifier import Classifier", ("bench", "model")),
    ],
)
def test_a_breach_is_found(file: str, source: str, pair: tuple[str, str]) -> None:
    module = file.replace("__", ".")
    assert pair in {(here, there) for here, there, line in breaches(planted(**{file: source})) if module in line}


@pytest.mark.parametrize(
    "sources",
    [
        {"guard__one": "import guard.two", "guard__two": "from guard import one"},
        {
            "guard__one": "from . import two",
            "guard__two": "def f():\n    from guard.three import x",
            "guard__three": "import guard.one",
        },
        {
            "guard__one": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from guard.two import x",
            "guard__two": "import guard.one",
        },
    ],
)
def test_a_circle_is_found(sources: dict[str, str]) -> None:
    wanted = sorted(name.replace("__", ".") for name in sources)
    assert planted(**sources).circles == [wanted]


def test_floors_are_counted_from_below() -> None:
    house = House(
        {
            "guard/__init__.py": "",
            "guard/a.py": "",
            "guard/b.py": "import guard.a",
            "guard/c.py": "import guard.b\nimport guard.a",
        }
    )
    assert {name: house.floors[f"guard.{name}"] for name in "abc"} == {"a": 0, "b": 1, "c": 2}
    assert house.arrows["guard.c"] == {"guard.a", "guard.b"}


def test_a_package_is_one_room() -> None:
    sources = {
        "guard/__init__.py": "",
        "guard/a.py": "",
        "guard/offline/__init__.py": "",
        "guard/offline/b.py": "import guard.a",
        "guard/offline/c/__init__.py": "",
        "guard/offline/c/d.py": "import guard.offline.c.e",
        "guard/offline/c/e.py": "from guard.offline import b",
    }
    assert House(sources).arrows["guard.offline.c.d"] == {"guard.offline.c.e"}
    house = by_rooms(House(sources))
    assert house.arrows["guard.offline.c"] == {"guard.offline.b"}
    assert house.floors["guard.offline.c"] == 2


def test_no_two_classes_share_a_name() -> None:
    files: dict[str, list[str]] = {}
    for file, source in HOUSE.sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not file.endswith("_pb2.py"):
                files.setdefault(node.name, []).append(file)
    assert {name: found for name, found in files.items() if len(found) > 1} == {}


@pytest.mark.parametrize("page", ["README.md", "guard/offline/README.md", "guard/serve/README.md"])
def test_where_is_what_names_files_that_are_there(page: str) -> None:
    """The tables for newcomers, README's and those of the two references: at least ten tasks, each with its file."""
    text = (ROOT / page).read_text("utf-8")
    table = text.partition("## Where is what")[2].partition("\n\n**")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = {row: re.findall(r"`([\w/]+\.py)`", row) for row in rows}
    assert len(rows) >= 10
    assert all(named.values())
    assert [name for names in named.values() for name in names if not (ROOT / name).is_file()] == []


def dotted_patches(source: str) -> list[str]:
    """Patches in a test that name what they replace by a string: nobody finds them when it is renamed or moved."""

    def by_string(call: ast.Call) -> bool:
        act = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [*call.args, *(word.value for word in call.keywords if word.arg != "raising")]
        written = bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
        if act in ("setattr", "delattr"):
            on_a_patch = isinstance(call.func, ast.Attribute)
            return on_a_patch and (written or len(given) < (3 if act == "setattr" else 2))
        return act == "patch" and written

    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if by_string(call)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("monkeypatch.setattr('guard.session.providers', None)", True),
        ("monkeypatch.setattr(\n    'guard.session.providers',\n    None,\n)", True),
        ("patch.setattr(f'guard.{name}.run', lambda: None, raising=False)", True),
        ("monkeypatch.setattr(place, stop)", True),
        ("monkeypatch.delattr('os.sched_getaffinity')", True),
        ("mock.patch('guard.session.providers')", True),
        ("patch('guard.session.providers')", True),
        ("monkeypatch.setattr(session, 'providers', None)", False),
        ("monkeypatch.delattr(os, 'sched_getaffinity')", False),
        ("setattr(thing, name, value)", False),
        ("delattr(thing, name)", False),
    ],
)
def test_a_patch_by_a_dotted_string_is_found(line: str, *, found: bool) -> None:
    assert bool(dotted_patches(line)) == found


def test_no_test_patches_by_a_dotted_string() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {file.relative_to(ROOT).as_posix(): dotted_patches(file.read_text("utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
