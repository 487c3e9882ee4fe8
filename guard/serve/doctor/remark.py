"""A remark of `guard doctor`: one line that says what was checked, what was found, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Result = Literal["ok", "warn", "wrong", "unknown"]
RESULT_COLUMNS, CHECK_COLUMNS = 8, 12
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Remark:
    """The result of one check: `warn` is allowed and risky, `unknown` is what cannot be seen from here."""

    check: str
    result: Result
    said: str  # what was found, and after a semicolon what to do

    @property
    def line(self) -> str:
        """The remark on one line."""
        return f"{self.result:<{RESULT_COLUMNS}}{self.check:<{CHECK_COLUMNS}}{' '.join(self.said.split())}"


def to_json(remarks: Sequence[Remark]) -> str:
    """Write all remarks as JSON, for programs."""
    raw = {"format": FORMAT_VERSION, "checks": [asdict(remark) for remark in remarks]}
    return json.dumps(raw, indent=2, ensure_ascii=False)


def is_healthy(remarks: Sequence[Remark], *, strict: bool = False) -> bool:
    """Whether nothing is wrong; in a strict reading there must be no warning either."""
    bad: tuple[Result, ...] = ("wrong", "warn") if strict else ("wrong",)
    return not any(remark.result in bad for remark in remarks)
