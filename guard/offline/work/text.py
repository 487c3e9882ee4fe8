"""Short texts for display: a name cut to a width, seconds as minutes."""

from __future__ import annotations


def short(text: str, width: int = 30) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def duration(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
