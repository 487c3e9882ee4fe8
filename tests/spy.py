"""A watched function: what it was given, by the names of its parameters, and what it gave."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Call:
    """One call of a watched function; a parameter that was left out has its default."""

    given: Mapping[str, Any]
    result: Any = None


def watched(function: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    """The function itself, which adds each of its calls to `calls` before it begins."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        calls.append(Call(bound.arguments))
        one = calls[-1]
        one.result = function(*arguments, **keywords)
        return one.result

    return call


def spied(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Call]:
    """Watch the function `name` of a module or class; the list grows by one call at a time."""
    calls: list[Call] = []
    patch.setattr(owner, name, watched(getattr(owner, name), calls))
    return calls
