"""The channel of the guard's own commands to a running guard: in the clear or by TLS, over a port or a unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from guard.errors import ConfigError
from guard.serve.certificates import authorities_of, certificate_of, system_roots
from guard.serve.grpc.credentials import channel_credentials
from guard.serve.identities import Identity
from guard.serve.rotation import NamedFile


@dataclass(frozen=True)
class ClientTls:
    """How a command speaks TLS: whom it trusts, what it shows, and the name that the server's certificate must bear."""

    ca: Path | None = None  # None: the system's
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None  # None: the address's host

    @staticmethod
    def of(
        *, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, server_name: str | None
    ) -> ClientTls | None:
        """What the flags of a command ask for; None where they ask for no TLS."""
        wanted = tls or any(given is not None for given in (ca, certificate, key, server_name))
        return ClientTls(ca, certificate, key, server_name) if wanted else None


def channel_to(address: str, tls: ClientTls | None, further: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """Open a channel, with TLS if there are settings for it, and with `further` options. Raises ConfigError."""
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0), *further]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    credentials, named = credentials_of(tls)
    return grpc.secure_channel(address, credentials, options=[*options, *named])


def credentials_of(tls: ClientTls) -> tuple[grpc.ChannelCredentials, tuple[tuple[str, Any], ...]]:
    """The credentials of a channel that speaks TLS so, and the options that it needs beside. Raises ConfigError."""
    given = (("--certificate", tls.certificate), ("--key", tls.key), ("--ca", tls.ca))
    files = {flag: NamedFile(flag, str(path)) for flag, path in given if path is not None}
    if ("--certificate" in files) != ("--key" in files):
        raise ConfigError("--certificate and --key belong together; give both, or none")
    own = roots = None
    if "--certificate" in files:
        content = [files[flag].content() for flag in ("--certificate", "--key")]
        named = [str(files[flag]) for flag in ("--certificate", "--key")]
        own = certificate_of(content[0], content[1], "client", named=named[0], key_named=named[1])
    if "--ca" in files:
        roots = authorities_of(files["--ca"].content(), named=str(files["--ca"]))
    options = () if tls.server_name is None else (("grpc.default_authority", tls.server_name),)
    return channel_credentials(Identity(own, roots, ()), system_roots()), options


def token_metadata(file: Path | None) -> tuple[tuple[str, str], ...]:
    """The metadata that bears the token of a file: TOKEN alone, or a line NAME TOKEN of `admin_tokens`.

    Raises:
        ConfigError: the file cannot be read, or has no token but the digest of one.
    """
    if file is None:
        return ()
    named = NamedFile("--token-file", str(file), "a file with TOKEN, or NAME TOKEN")
    lines = [words for line in named.content().decode("utf-8", "replace").splitlines() if (words := line.split())]
    tokens = [words[-1] for words in lines if not words[0].startswith("#")]
    found = next((token for token in tokens if token.isascii() and not token.startswith("sha256:")), None)
    if found is None:
        digest = "; a digest is no token" if tokens else ""
        raise ConfigError(f"{named} holds no token{digest}; wanted {named.kind}")
    return (("authorization", f"Bearer {found}"),)
