"""Commands that need a bundle and a place for its image: pack and unpack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
