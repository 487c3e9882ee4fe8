"""Commands that bring a bundle to a registry or a tracking server, and back: pack, unpack and track."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.options import BundleArgument

PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="Speak no TLS to the registry; one on this machine need not have it.")
]


def pack(
    bundle: BundleArgument,
    *,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE.tar|oci://HOST/NAME:TAG", help="Image layout, archive, or registry.", show_default=False
        ),
    ],
    plain_http: PlainHttp = False,
) -> None:
    """Pack a bundle as an OCI image, its files and signature in /models, for an image volume to mount.

    The same bundle gives the same image. A registry takes the extra [registry], and the
    credentials of docker login (DOCKER_CONFIG). SOURCE_DATE_EPOCH dates the image.
    """
    from guard.bundle import Bundle
    from guard.oci.place import pack_to

    for line in pack_to(Bundle.open(bundle), out, plain_http=plain_http):
        typer.echo(line)


def unpack(
    image: Annotated[
        str,
        typer.Argument(metavar="DIR|FILE.tar|oci://HOST/NAME:TAG", help="What guard pack made.", show_default=False),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Where the bundle is written.", show_default=False)],
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public key (PEM): refuses what it did not sign.", show_default=False),
    ] = None,
    plain_http: PlainHttp = False,
) -> None:
    """Take a bundle out of an OCI image, every digest and the bundle itself verified before it is there."""
    from guard.oci.place import unpack_from
    from guard.signing import Trust

    for line in unpack_from(image, out, Trust.of(trusted_key or ()), plain_http=plain_http):
        typer.echo(line)


def track(
    bundle: BundleArgument,
    *,
    mlflow: Annotated[
        str,
        typer.Option(metavar="URI", envvar="MLFLOW_TRACKING_URI", help="The tracking server.", show_default=False),
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A report of guard evaluate, instead of the bundle.", show_default=False),
    ] = None,
) -> None:
    """Log a bundle to an MLflow tracking server: parameters, the report's figures, and its files under bundle/.

    As guard train --mlflow does. The experiment is MLFLOW_EXPERIMENT_NAME's, or guard.
    """
    from guard.bundle import Bundle
    from guard.tracking import bundle_run, check_tracking, report_run
    from guard.tracking import track as run

    opened = Bundle.open(bundle)
    check_tracking(mlflow, lambda _: None)
    found = bundle_run(opened) if report is None else report_run(opened, report, {})
    typer.echo(f"run       {run(mlflow, found)}, {len(found.figures)} figures, {len(found.files)} files")


def asked_tracking(uri: str | None) -> float:
    """Look at a tracking server's address before anything long begins; return the time, in seconds since 1970."""
    if uri is not None:
        from guard.tracking import check_tracking

        check_tracking(uri, lambda text: typer.echo(f"guard: {text}", err=True))
    return time.time()


def tracked(uri: str | None, run: Callable[[], Any], command: str) -> None:
    """Log what has ended well; a server that fails takes nothing of it away, and it is said how to try again."""
    if uri is None:
        return
    from guard.errors import GuardError
    from guard.tracking import track

    try:
        typer.echo(f"run {track(uri, run())}")
    except GuardError as error:
        typer.echo(f"guard: not logged: {error}; all else is done; try again: {command} --mlflow URI", err=True)
