"""The table of failures: where a request can fail, whether it then passes, and what client, metrics and log are told.

Where a failure passes is decided here (`excuse`), README shows it (`as_markdown`), and a test drives each of
its cells from a configuration file to the wire.

Rule 1: what is wrong with a request itself never passes by `on_failure`: else sending it would be a way past the guard.
Rule 2: what passes uninspected is marked, and counted by its reason, in every mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from guard.errors import (
    BreakerOpen,
    Expired,
    GuardError,
    InspectionTimeout,
    MalformedRequest,
    Overloaded,
    RequestError,
    Unchecked,
    Uninspectable,
    UpstreamDown,
)
from guard.policy import Mode, OnFailure, Policy
from guard.serve.sampling import NOT_SAMPLED

Passing = Literal["never", "in shadow", "by on_failure", "always"]
LogLevel = Literal["debug", "warning"]

OF_REQUEST = (MalformedRequest, Uninspectable)
OF_GUARD = (Unchecked, InspectionTimeout, BreakerOpen, Overloaded)
UNCHECKED, OFF, INTERNAL = "unchecked", "off", "internal"
ALLOWED_MODEL, ALLOWED_METHOD = "allowed_model", "allowed_method"  # by allow_models and allow_methods
SHADOW_QUEUE = "shadow_queue"  # inspected after it was forwarded
WANTED_UNCHECKED = (OFF, ALLOWED_MODEL, ALLOWED_METHOD, NOT_SAMPLED, SHADOW_QUEUE)  # the operator's own wish: no alarm
BREAKER_OPEN = BreakerOpen().reason.lower()
UNCHECKED_TOTAL, REFUSED_TOTAL, REQUESTS_TOTAL = "guard_unchecked_total", "guard_refused_total", "guard_requests_total"


@dataclass(frozen=True)
class Failure:
    """A place where a request can fail, and what its client, metrics and log are told where it does not pass."""

    place: str
    passing: Passing
    status: str
    reason: str  # of the metric; where the failure is none of the inspection's, the action of guard_requests_total
    level: LogLevel | None = "warning"  # None: no line
    of_inspection: bool = True  # else it is the same in every mode


@dataclass(frozen=True)
class Cell:
    """The fate of a failed request in one mode, under one setting of `on_failure`."""

    status: str
    unchecked: bool  # whether it passes, with that verdict
    metric: str
    reason: str  # label of the metric
    level: LogLevel | None
    event: str | None  # of the line in the log


def inspection(place: str, error: type[RequestError], *, level: LogLevel = "warning") -> Failure:
    """A failure of the inspection that raises `error`."""
    raised = error()
    return Failure(place, passing(raised), error.status, raised.reason.lower(), level)


def elsewhere(place: str, status: str, action: str) -> Failure:
    """A failure beside the inspection."""
    return Failure(place, "never", status, action, None, of_inspection=False)


def passing(error: Exception) -> Passing:
    """The modes and settings in which a request passes although its inspection ended with this error."""
    if isinstance(error, OF_REQUEST):
        return "in shadow"
    if isinstance(error, GuardError) and not isinstance(error, OF_GUARD):
        return "never"  # it is the answer
    return "by on_failure"  # out of order, overloaded, or a fault of ours


def excuse(policy: Policy, error: Exception) -> str | None:
    """The reason for which a request passes uninspected after an error; None where the error is the answer."""
    if not passes(passing(error), policy.mode, policy.on_failure):
        return None
    return error.reason.lower() if isinstance(error, GuardError) else INTERNAL


def passes(passing: Passing, mode: Mode, on_failure: OnFailure) -> bool:
    """Whether a request that fails so passes in this mode, which inspects."""
    if passing == "by on_failure":
        return mode == "shadow" or on_failure == "open"
    return passing == "always" or (passing == "in shadow" and mode == "shadow")


FAILURES = (
    inspection("malformed request", MalformedRequest, level="debug"),
    inspection("not inspectable by its form", Uninspectable, level="debug"),
    inspection("programs not loaded yet", Unchecked),
    inspection("engine fails on it", Unchecked),
    inspection("device lost", Unchecked),
    inspection("engine hangs, or is too slow", InspectionTimeout),
    inspection("breaker open", BreakerOpen),
    inspection("queue full", Overloaded),
    Failure("fault in the guard's code", "by on_failure", Unchecked.status, INTERNAL),
    Failure("not sampled", "always", "OK", NOT_SAMPLED, "debug"),
    elsewhere("model server down", UpstreamDown.status, "failed"),
    elsewhere("model server slow", Expired.status, "expired"),
    elsewhere("client's deadline passes", Expired.status, "expired"),
    elsewhere("client leaves", "CANCELLED", "cancelled"),
)


# The reasons that an alarm looks at: of failures that can pass, and of those that are refused where none passes.
UNWANTED_UNCHECKED = tuple(
    dict.fromkeys(one.reason for one in FAILURES if one.passing != "never" and one.reason not in WANTED_UNCHECKED)
)
REFUSED_REASONS = tuple(one for one in UNWANTED_UNCHECKED if one != INTERNAL)


def cell(failure: Failure, mode: Mode, on_failure: OnFailure) -> Cell:
    """The cell of the table for a failure, a mode and a setting of `on_failure`."""
    if not failure.of_inspection:
        return Cell(failure.status, False, REQUESTS_TOTAL, failure.reason, None, None)
    if mode == OFF:
        return Cell("OK", True, UNCHECKED_TOTAL, OFF, None, None)
    if passes(failure.passing, mode, on_failure):
        level: LogLevel = "debug" if failure.passing == "always" else "warning"
        return Cell("OK", True, UNCHECKED_TOTAL, failure.reason, level, UNCHECKED)
    reason = UNCHECKED if failure.reason == INTERNAL else failure.reason
    return Cell(failure.status, False, REFUSED_TOTAL, reason, failure.level, "refused")


COLUMNS: tuple[tuple[str, tuple[tuple[Mode, OnFailure], ...]], ...] = (
    ("`enforce`, `flag`: `closed`", (("enforce", "closed"), ("flag", "closed"))),
    ("`enforce`, `flag`: `open`", (("enforce", "open"), ("flag", "open"))),
    ("`shadow`", (("shadow", "closed"), ("shadow", "open"))),
    ("`off`", (("off", "closed"), ("off", "open"))),
)


def as_markdown() -> str:
    """The table as README shows it; columns that agree in all cells are one."""
    rows = [("where it fails", *(title for title, _ in COLUMNS), "line in the log"), ("---",) * (len(COLUMNS) + 2)]
    for failure in FAILURES:
        cells = [shown(failure, settings) for _, settings in COLUMNS]
        rows.append((failure.place, *cells, failure.level or "none"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- | --- |", "|---|---|")


def shown(failure: Failure, settings: tuple[tuple[Mode, OnFailure], ...]) -> str:
    """A cell as README shows it, for settings that agree."""
    (found,) = {cell(failure, mode, on_failure) for mode, on_failure in settings}
    return f"{'passes' if found.unchecked else found.status}, `{found.reason}`"


def every_setting() -> tuple[tuple[Mode, OnFailure], ...]:
    """The pairs of a mode and a setting of `on_failure`."""
    return tuple((mode, on_failure) for mode in get_args(Mode) for on_failure in get_args(OnFailure))
