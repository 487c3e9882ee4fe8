"""A choice that follows from measured speed is made once, and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Choice = TypeVar("Choice")  # what JSON holds as it is: a size, or sizes by name


def kept(folder: Path, question: str, choose: Callable[[], Choice]) -> Choice:
    """What was chosen before for the same question, or chosen now and kept.

    Speeds differ from run to run; what an evaluation measures must not.
    """
    file = folder / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
    try:
        found: Choice = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = choose()
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return found
