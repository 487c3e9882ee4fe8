"""A choice of detectors within a limit of forwards in words, from what the manifest keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def choice_text(found: Mapping[str, Any]) -> str:
    """What a choice of detectors costs and catches, and what one more forward would buy, in words."""
    chosen, more = found["chosen"], found["next_forward"]
    text = (
        f"for {found['limit']:.3g} forwards at most: {chosen['forwards']:.3g} forwards, {chosen['worst']:.0%} caught "
        f"of the worst attack left out ({chosen['worst_attack']}), {chosen['mean']:.0%} of all on average; "
    )
    if more is None:
        return text + "one more forward would buy nothing"
    return text + (
        f"{more['forwards']:.3g} forwards would buy {more['worst']:.0%} and {more['mean']:.0%}: "
        + ", ".join(more["detectors"])
    )
