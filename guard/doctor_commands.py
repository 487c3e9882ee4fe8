"""Commands that look at a guard: `doctor`, with the flags of `guard serve` and checks of all they name; `probe`."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import fields, replace
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.bundle_commands import Ca, ClientCertificate, ClientKey, ServerName, Tls, serve

if TYPE_CHECKING:
    from guard.config import ServeConfig, SettingsSource

Json = Annotated[bool, typer.Option("--json", help="All remarks as JSON, for programs.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings, too.")]
CONFIG, KSERVE = "config", "kserve"  # flags of serve that are no settings


def with_flags_of_serve(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `guard serve` beside its own; it gets them as a mapping, `flags`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]
    hints = typing.get_type_hints(serve, include_extras=True) | typing.get_type_hints(command, include_extras=True)
    of_serve = inspect.signature(serve).parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        flags = {one.name: given.pop(one.name) for one in of_serve}
        command(flags=flags, **given)

    every = [one.replace(annotation=hints[one.name]) for one in (*own, *of_serve)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # which typer reads
    run.__annotations__ = {one.name: hints[one.name] for one in every}
    return run


@with_flags_of_serve
def doctor(*, flags: dict[str, Any], as_json: Json = False, strict: Strict = False) -> None:
    """Check a guard's surroundings: one line each, ok or what is wrong and what to do. Exit code 1 if something is.

    Settings are those of guard serve: flags, GUARD_* variables, guard.toml. Without any flag they are those of the
    guard that runs here: kubectl exec POD --container guard -- guard doctor
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, which starts a thread a CPU otherwise
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc, which writes a line for each failed handshake
    from guard.serve.doctor.doctor import examine
    from guard.serve.doctor.given_settings import GivenSettings
    from guard.serve.doctor.remark import is_healthy, to_json
    from guard.serve.doctor.setup import Setup

    source, origin = chosen_source(flags)
    remarks = []
    for remark in examine(Setup(GivenSettings.read(source), origin=origin)):
        remarks.append(remark)
        if not as_json:
            typer.echo(remark.line)
    if as_json:
        typer.echo(to_json(remarks))
    if not is_healthy(remarks, strict=strict):
        raise typer.Exit(1)


def chosen_source(flags: dict[str, Any]) -> tuple[SettingsSource, str]:
    """Choose whose settings are checked: those of the flags, or without any of the only guard that runs here.

    Returns:
        The source, and where it comes from in words; empty where the flags say it.
    """
    from guard.config import SettingsSource
    from guard.serve.doctor.machine import Machine
    from guard.serve.doctor.running_guard import running_guards

    if any(value is not None for value in flags.values()):
        return source_of(flags, dict(os.environ)), ""
    guards = running_guards(Machine())
    if len(guards) != 1:
        several = f"{len(guards)} guards run here; give the flags of one" if guards else ""
        return SettingsSource(None, dict(os.environ), {}), several
    os.chdir(guards[0].folder)
    return source_of(parsed(guards[0].flags), guards[0].environment), f"as {guards[0].process} has them"


def probe(
    address: Annotated[str | None, typer.Argument(metavar="HOST:PORT|unix:PATH", show_default=False)] = None,
    *,
    local: Annotated[bool, typer.Option("--local", help="Whether the guard that runs here is alive.")] = False,
    service: Annotated[str, typer.Option(help="readiness, or empty for liveness.")] = "readiness",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 2.0,
    tls: Tls = False,
    ca: Ca = None,
    certificate: ClientCertificate = None,
    key: ClientKey = None,
    server_name: ServerName = None,
) -> None:
    """Exit code 0 if the guard is healthy, 10 if not: for exec probes and scripts.

    With --local there is no address: that of the metrics is taken from the settings of the guard that runs here.
    """
    if local:
        if address is not None:
            raise typer.BadParameter("an address and --local exclude each other")
        probe_local(timeout_s=timeout_s)
        return
    if address is None:
        raise typer.BadParameter("wanted HOST:PORT, unix:PATH or --local")
    from guard.serve.client_channel import ClientTls
    from guard.serve.probe import probe as run

    spoken = ClientTls.of(tls=tls, ca=ca, certificate=certificate, key=key, server_name=server_name)
    run(address, service, timeout_s=timeout_s, tls=spoken)


def probe_local(*, timeout_s: float) -> None:
    """Return if each guard that runs here, as this user, is alive by the metrics listener of its own settings.

    Neither TLS nor the model server has a part in it: metrics are in the clear, and /livez asks for the guard alone.

    Raises:
        NotReadyError: none runs here, or one is not alive.
        ConfigError: its settings cannot be read.
    """
    from guard.errors import NotReadyError
    from guard.serve.doctor.listeners import page
    from guard.serve.doctor.machine import Machine
    from guard.serve.doctor.running_guard import running_guards

    guards = running_guards(Machine())
    if not guards:
        raise NotReadyError("no guard runs here that this user may look at; wanted a guard serve beside this command")
    for guard in guards:
        with chdir(guard.folder):
            address = at_start(source_of(parsed(guard.flags), guard.environment)).metrics_listen
        status, text = page(address, "/livez", timeout_s)
        if status != HTTPStatus.OK:
            said = f"answers {status}: {text.strip()}" if status else "does not answer"
            raise NotReadyError(f"metrics_listen {address} of {guard.process} {said}")


def at_start(source: SettingsSource) -> ServeConfig:
    """The settings of a guard that runs; without its file where that was changed since, and is not valid."""
    from guard.errors import ConfigError

    try:
        return source.load()
    except ConfigError:
        if source.file is None:
            raise
        return replace(source, file=None).load()


def source_of(flags: dict[str, Any], environment: dict[str, str]) -> SettingsSource:
    """The source of settings that `guard serve` makes of its flags."""
    from guard.config import ServeConfig, SettingsSource
    from guard.kserve_arguments import kserve_settings

    of_kserve = kserve_settings(flags.get(KSERVE) or (), environment)
    names = {field.name for field in fields(ServeConfig)}
    own = {name: value for name, value in flags.items() if name in names and value is not None}
    return SettingsSource(flags.get(CONFIG), environment, {**of_kserve.flags, **own})


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """The flags in a command line of `guard serve`, by its own parser."""
    from guard.kserve_arguments import rewritten

    app = typer.Typer()
    app.command()(serve)
    _, *flags = rewritten(["serve", *(word for word in words if word != "--debug")])
    context = typer.main.get_command(app).make_context("serve", flags)
    names = inspect.signature(serve).parameters
    return {name: value for name, value in context.params.items() if name in names}
