"""Names of constants: a bare number says in its name what it counts or in which unit it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for file in (ROOT / "guard").rglob("*.py") if not file.name.endswith("_pb2.py"))
# What a number counts, the unit it is in, or the quantity it is: one word of a constant's name is one of these.
UNITS = set(
    re.findall(
        r"\w+",
        "S MS US MICROSECONDS MINUTES BYTES INCHES DPI PIXELS COLUMNS CHARACTERS NATS "  # units
        "ITEMS ROWS VALUES CLASSES CHANNELS SHARDS CALLS MESSAGES REFUSALS CONNECTIONS STREAMS FIELDS ENTRIES THREADS "
        "ARENAS READS PAIRS TRIES COPIES STEPS ROUNDS EPOCHS CHECKS POINTS PARTS BLOCKS BINS CURVES TAILS REFERENCES "
        "DEVIATIONS ALARMS IMAGES FORWARDS FAMILIES QUERIES PRINCIPALS TILES "  # counts
        "SHARE SHARES RATE RATES FACTOR FACTORS DIVISOR TOLERANCE PERCENTILE PENALTY MARGIN GAP SLOPE DISTANCE LOGIT "
        "ODDS RISK STEP DEVIATION MEAN SECONDS COSINE WEIGHT SCORE "  # quantities
        "CODE VERSION P_VALUES",
    )
)
NAMED_BY_OTHERS = {"M_ARENA_MAX"}  # glibc's own name


def numbers(node: ast.expr | None) -> bool:
    """Tell whether an expression is made of number literals alone."""
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.UnaryOp(operand=operand):
            return numbers(operand)
        case ast.BinOp(left=left, right=right):
            return numbers(left) and numbers(right)
        case ast.Tuple(elts=elements):
            return bool(elements) and all(numbers(element) for element in elements)
        case _:
            return False


def constants(source: str) -> Iterator[str]:
    """Names of a module's own constants that are bare numbers."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from (ast.unparse(one) for one, value in zip(targets, values, strict=True) if numbers(value))
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if numbers(value):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if numbers(value):
                yield name


def says_its_unit(name: str) -> bool:
    """Tell whether a constant's name holds a unit or a quantity, beside the word that says what is bounded."""
    words = name.strip("_").split("_")
    return name in NAMED_BY_OTHERS or (len(words) > 1 and not UNITS.isdisjoint([*words, name]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_number_says_its_unit(file: Path) -> None:
    assert [name for name in constants(file.read_text("utf-8")) if not says_its_unit(name)] == []


def test_bare_numbers_are_found() -> None:
    source = "FEWEST = 20\nLIMITS: tuple[int, int] = (1, -2)\nA, B = 2 * 3, 'text'\nNAME = 'x'\nON = True\n"
    assert list(constants(source)) == ["FEWEST", "LIMITS", "A"]
    assert not any(says_its_unit(name) for name in ("FEWEST", "MARGIN", "ITEMS", "AT_ONCE", "MOST_WAITING"))
    assert all(says_its_unit(name) for name in ("MIN_VERIFIED_ITEMS", "WAIT_S", "_LOGIT_MARGIN"))
