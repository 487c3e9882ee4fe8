"""The command `guard doctor`: the flags of `guard serve`, and checks of all that they name."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from guard.bundle_commands import serve

Json = Annotated[bool, typer.Option("--json", help="All findings as JSON, for programs.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings, too.")]
CONFIG = "config"  # the flag of serve that is no setting


def with_flags_of_serve(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `guard serve` beside its own; it gets them as a mapping, `flags`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]
    hints = typing.get_type_hints(serve, include_extras=True) | typing.get_type_hints(command, include_extras=True)
    of_serve = inspect.signature(serve).parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        flags = {name: given.pop(name) for name in inspect.signature(serve).parameters}
        command(flags=flags, **given)

    every = [one.replace(annotation=hints[one.name]) for one in (*own, *of_serve)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # which typer reads
    run.__annotations__ = {one.name: hints[one.name] for one in every}
    return run


@with_flags_of_serve
def doctor(*, flags: dict[str, Any], as_json: Json = False, strict: Strict = False) -> None:
    """Check a guard's surroundings: one line each, ok or what is wrong and what to do. Exit code 1 if something is.

    Settings are those of guard serve: flags, GUARD_* variables, guard.toml. Without any flag it takes those of the
    guard serve that runs here, as in `kubectl exec POD --container guard -- guard doctor`.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, which starts a thread a CPU otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc, which writes a line for each failed handshake
    from guard.config import SettingsSource
    from guard.serve.doctor.doctor import examine
    from guard.serve.doctor.finding import is_healthy, to_json
    from guard.serve.doctor.given_settings import GivenSettings
    from guard.serve.doctor.setup import Setup

    source = SettingsSource(flags.pop(CONFIG), dict(os.environ), flags)
    findings = []
    for finding in examine(Setup(GivenSettings.read(source))):
        findings.append(finding)
        if not as_json:
            typer.echo(finding.line)
    if as_json:
        typer.echo(to_json(findings))
    if not is_healthy(findings, strict=strict):
        raise typer.Exit(1)
