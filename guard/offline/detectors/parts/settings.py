"""Settings of a recipe, checked before a detector is built of them."""

from __future__ import annotations

from typing import Any, get_args


def one_of(name: str, value: object, kind: Any) -> None:
    """Check that a value is one of a Literal's. Raises ValueError."""
    if value not in get_args(kind):
        raise ValueError(f"{name} = {value!r}; wanted one of {', '.join(get_args(kind))}")
