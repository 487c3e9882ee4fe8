"""A digest of the code that computes something: a cached result is found again only while its code is the same.

Rule 1: the digest covers a module and everything of ours that it imports, at once or when a function runs.
Rule 2: comments, docstrings and layout do not count; every other change does, whether it changes the result or not.

How it works. A module's source is compiled, without its docstrings, and what the interpreter would execute is digested:
instructions, names and constants, but no line numbers. Python's syntax trees are left alone: before Python 3.12 they
cannot be built by two threads at once (cpython#106905), and formatting a traceback builds one.
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

PACKAGE = "guard"  # the package whose modules are followed

Sources = Callable[[str], str | None]  # a module's name -> its source; None where it has none


def code_digest(*modules: str) -> str:
    """Return the SHA-256 (hex) of these modules and of all modules of ours that they import."""
    return digest_of(tuple(sorted(set(modules))))


@cache
def digest_of(modules: tuple[str, ...]) -> str:
    return digest(modules, source_of)


def digest(modules: Iterable[str], sources: Sources) -> str:
    """Compute the digest of modules whose sources come from `sources`."""
    ahead, found = list(modules), dict[str, str]()
    while ahead:
        module = ahead.pop()
        if module in found:
            continue
        source = sources(module)
        found[module] = "" if source is None else normal(source)
        ahead += imported(module, source, sources) if source is not None else []
    total = hashlib.sha256()
    for module, text in sorted(found.items()):
        total.update(f"{module}\n{text}\n".encode())
    return total.hexdigest()


@cache
def source_of(module: str) -> str | None:
    """Return the source of a module that can be imported; None for one that has no source file."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # a part of it is no package, or it is the program's own `__main__`
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8")


def imported(module: str, source: str, sources: Sources) -> list[str]:
    """The modules of ours that a module imports, each with the packages that it lies in."""
    return [name for name in names_of_ours(module, source) if sources(name) is not None]


@cache
def names_of_ours(module: str, source: str) -> tuple[str, ...]:
    """The names of ours that a module imports: modules, their packages, and what they define; read once a process."""
    names: set[str] = set()
    for code in parts(compiled(source)):
        before: list[Any] = []
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":  # after two constants: how many packages up, and the names wanted
                level, wanted = before[-2:]
                base = step.argval
                if level:
                    base = ".".join([*module.split(".")[:-level], *filter(None, [base])])
                names |= {base} | {f"{base}.{name}" for name in wanted or ()}
            before.append(step.argval)
    return tuple(name for name in names if name.split(".")[0] == PACKAGE)


@cache
def normal(source: str) -> str:
    """The program without its docstrings, comments and layout."""
    return repr(plain(compiled(source)))


@cache
def compiled(source: str) -> CodeType:
    """A module's code; the flag that removes docstrings removes assertions, too."""
    return compile(source, "<module>", "exec", optimize=2, dont_inherit=True)


def parts(code: CodeType) -> Iterator[CodeType]:
    """The code of a module, and of every class and function in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from parts(constant)


def plain(value: Any) -> object:
    """A constant, or what a piece of code executes, as something that prints alike in every process."""
    if isinstance(value, CodeType):
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        names = (value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        # A docstring that was removed leaves a NOP; jumps are relative, and none goes over it.
        steps = tuple((step.opcode, step.arg) for step in dis.get_instructions(value) if step.opname != "NOP")
        return (counts, names, steps, tuple(map(plain, value.co_consts)))
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, frozenset):
        return ("set", *sorted(map(repr, value)))
    return (type(value).__name__, value)
