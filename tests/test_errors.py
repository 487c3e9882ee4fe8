"""Every way of failing has a name, a status, an exit code and a row in the README."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import grpc
import pytest

from guard import errors
from guard.errors import GuardError, MalformedRequest, RequestError, UserError, first_line, leaves

LEAVES = list(leaves())


def names(leaf: type[GuardError]) -> str:
    return leaf.__name__


def classes() -> list[type[GuardError]]:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in found if issubclass(value, GuardError)]


def test_the_leaves_are_all_that_is_raised() -> None:
    inner = {GuardError, UserError, RequestError}
    assert set(LEAVES) == set(classes()) - inner
    assert len(LEAVES) == len(set(LEAVES)) >= 19
    assert all(issubclass(leaf, UserError | RequestError) for leaf in LEAVES)


def test_the_drawing_at_the_head_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(leaf.__name__ for leaf in classes() if leaf is not GuardError)


@pytest.mark.parametrize("leaf", LEAVES, ids=names)
def test_status_is_one_that_grpc_knows(leaf: type[GuardError]) -> None:
    status = grpc.StatusCode[leaf.status]  # KeyError if there is none
    assert status is not grpc.StatusCode.OK
    assert "status" in vars(leaf), "a leaf says its own status"


@pytest.mark.parametrize("leaf", LEAVES, ids=names)
def test_exit_code_is_a_failure_and_no_signal(leaf: type[GuardError]) -> None:
    assert "exit_code" in vars(leaf), "a leaf says its own exit code"
    assert 1 <= leaf.exit_code < 126


def test_what_a_user_can_mend_has_an_exit_code_of_its_own() -> None:
    codes = [leaf.exit_code for leaf in LEAVES if issubclass(leaf, UserError)]
    assert len(codes) == len(set(codes))
    assert 1 not in codes, "1 is for what nobody foresaw"


@pytest.mark.parametrize("leaf", LEAVES, ids=names)
def test_reason_is_stable_upper_case(leaf: type[GuardError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", leaf("x").reason)


def test_reason_is_the_class_name_in_words() -> None:
    assert MalformedRequest("x").reason == "MALFORMED_REQUEST"


@pytest.mark.readme
@pytest.mark.parametrize("leaf", LEAVES, ids=names)
def test_readme_lists_it(leaf: type[GuardError], root: Path) -> None:
    rows = re.findall(r"^\|(.+)\|\s*$", (root / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    cells = [tuple(cell.strip().strip("`") for cell in row.split("|")) for row in rows]
    assert (leaf.__name__, leaf.status, str(leaf.exit_code)) in {row[:3] for row in cells}


@pytest.mark.parametrize(
    ("said", "line"),
    [("", "OSError"), ("\n", "OSError"), ("  \n\n", "OSError"), ("one\ntwo", "one"), ("\n one", "one")],
)
def test_an_error_that_says_nothing_has_a_first_line_too(said: str, line: str) -> None:
    assert first_line(OSError(said)) == line


def test_nobody_takes_the_first_line_of_an_error_by_hand() -> None:
    """`str(error).splitlines()[0]` fails where the error has no message; `first_line` does not."""
    sources = {file: file.read_text("utf-8") for file in Path(errors.__file__).parent.rglob("*.py")}
    assert [file.name for file, source in sources.items() if "splitlines()[0]" in source] == []
