"""Docstrings that a newcomer can read: the first line says what a thing is, without leaning on the name above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for file in (ROOT / "guard").rglob("*.py") if not file.name.endswith("_pb2.py"))
MIN_WORDS = 4
EXAMPLES = {"test_prose.py", "layering.py", "test_dockerfile.py", "test_pages.py"}  # which name files that are none
# A first line that begins with one of these has its subject in the name above it, or nowhere.
LEANING = set(
    re.findall(
        r"\w+",
        "of in on at by for from with without within to as until beyond over under after before since and or but nor "
        "that which whose who whom it they this these those he she its their where when also than then here there "
        "none one both each all every any some such same other others so",
    )
)
PERSONS = re.compile(  # a cited author is none
    r"\b((?!He et al)he|him|his|she|whoever|nobody|somebody|anybody|everybody|everyone|poor)\b", re.IGNORECASE
)


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module and of everything in it that has one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "name", "the file"), text


def faults(text: str) -> Iterator[str]:
    """What is wrong with a docstring's prose."""
    first = text.split("\n", 1)[0]
    words = re.findall(r"[A-Za-z_'’]+", first.replace("`", ""))
    if not words or words[0].lower() in LEANING:
        yield f"leans on the name above it: {first!r}"
    if len(words) < MIN_WORDS:
        yield f"says too little: {first!r}"
    if not first.rstrip('"').endswith((".", "?", ":", "!")):
        yield f"is no sentence of one line: {first!r}"
    if found := PERSONS.search(text):
        yield f"speaks of a person ({found.group()}): {first!r}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_first_line_can_be_read_alone(file: Path) -> None:
    found = [f"{name} {fault}" for name, text in docstrings(file.read_text("utf-8")) for fault in faults(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "Of all runs together.",
        "That can be attacked.",
        "One of them.",
        "A shard.",
        "The items that are attacked\nand more of them.",
        "A request goes unchecked where he says so.",
    ],
)
def test_prose_that_leans_is_found(text: str) -> None:
    assert list(faults(text))


@pytest.mark.parametrize("text", ["Items of one split, in the order of their hashes.", "`guard bench`: what it costs."])
def test_prose_that_stands_alone_passes(text: str) -> None:
    assert list(faults(text)) == []


def test_files_that_are_named_are_there() -> None:
    """A docstring or comment that sends its reader to a file or page sends him to one of this repository."""
    named = {file.name for file in ROOT.rglob("*") if ".venv" not in file.parts and ".side" not in file.parts}
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for top in ("guard", "tests")
        for file in (ROOT / top).rglob("*.py")
        if file.name not in EXAMPLES
        for name in re.findall(r"`([\w/]+\.(?:py|md))`|\b(\w+\.md)\b", file.read_text("utf-8"))
        for name in [next(filter(None, name)).rsplit("/", 1)[-1]]
        if name not in named
    }
    assert missing == set()
