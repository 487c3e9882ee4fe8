"""Digest of the code that computes a result: a cached result is found again only while its code is the same.

Rule 1: the digest covers a module and everything of ours that it imports, at once or when a function runs.
Rule 2: comments, docstrings and layout do not count; every other change does, whether it changes the result or not.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "guard"  # the package whose modules are followed
PARSING = threading.Lock()  # CPython 3.11 fails when threads build syntax trees side by side (cpython#106905)

Sources = Callable[[str], str | None]  # a module's name -> its source; None where it has none


def code_digest(*modules: str) -> str:
    """Return the SHA-256 (hex) of these modules and of all modules of ours that they import."""
    with PARSING:
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
    """List the modules of ours that a module imports, each with the packages that it lies in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == PACKAGE}
    return [name for name in ours if sources(name) is not None]


@cache
def normal(source: str) -> str:
    """Return the program without its docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
