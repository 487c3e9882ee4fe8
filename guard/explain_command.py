"""The command that asks a running guard to explain a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guard.bundle_commands import Ca, ClientCertificate, ClientKey, ServerName, Tls, TokenFile


def explain(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR", help="Inputs as guard score reads them, or an audit log.", show_default=False
        ),
    ],
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT|unix:PATH",
            envvar="GUARD_ADMIN_LISTEN",
            help="The guard's admin_listen.",
            show_envvar=True,
        ),
    ] = "127.0.0.1:8083",
    *,
    item: Annotated[int, typer.Option(help="Which item of the file.")] = 0,
    named: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Which request of the audit log, by its guard-id; 'ID, message N' of a stream.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which of the guard's models.", show_default="the only one")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as one JSON object.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for an idle device.")] = 30.0,
    token_file: TokenFile = None,
    tls: Tls = False,
    ca: Ca = None,
    certificate: ClientCertificate = None,
    key: ClientKey = None,
    server_name: ServerName = None,
) -> None:
    """Ask a running guard what lies behind its verdict on an input: detectors, further answers, where the model looked.

    It waits for the guard's device to have nothing else to do.
    """
    from guard.serve import explain_call
    from guard.serve.client_channel import ClientTls

    spoken = ClientTls.of(tls=tls, ca=ca, certificate=certificate, key=key, server_name=server_name)
    wanted = explain_call.Wanted(source, item, named, model)
    answer, spec = explain_call.explain(address, wanted, timeout_s=timeout_s, tls=spoken, token_file=token_file)
    for line in [explain_call.as_json(answer)] if as_json else explain_call.as_lines(answer, spec):
        typer.echo(line)
