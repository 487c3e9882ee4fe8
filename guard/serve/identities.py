"""The guard's certificates, towards clients and towards the model server, from the files that the settings name.

Rule 1: certificate, key and authorities of one side are one value: they are taken over together or not at all.
Rule 2: settings of which one means nothing without another are an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.certificates import Authorities, Certificate, Purpose, authorities_of, certificate_of
from guard.serve.rotation import NamedFile, Rotated


@dataclass(frozen=True)
class Identity:
    """The certificate that one side of the guard shows, and the authorities that the other end's must lead to."""

    certificate: Certificate | None
    authorities: Authorities | None
    expires: tuple[tuple[str, float], ...]  # setting, seconds since 1970


def listener_identity(config: ServeConfig) -> Rotated[Identity] | None:
    """The identity that clients see; None where they are spoken to in the clear. Raises ConfigError."""
    if config.tls_certificate is None and config.tls_client_ca is not None:
        raise ConfigError(
            "tls_client_ca is set, and clients are spoken to without TLS; set tls_certificate and tls_key"
        )
    names = ("tls_certificate", "tls_key", "tls_client_ca")
    return None if pair(config, *names[:2]) is None else rotated(config, *names, purpose="server")


def upstream_identity(config: ServeConfig) -> Rotated[Identity] | None:
    """The identity that the model server sees; None where no file has a part in it. Raises ConfigError."""
    names = ("upstream_certificate", "upstream_key", "upstream_ca")
    if not config.upstream_tls and not config.rest_upstream.startswith("https://"):
        for name in names:
            if (value := getattr(config, name)) is not None:
                raise ConfigError(
                    f"{name} = {value!r}, but the upstream is spoken to without TLS; "
                    f"set upstream_tls = true, or leave {name} out"
                )
        return None
    if pair(config, *names[:2]) is None and config.upstream_ca is None:
        return None
    return rotated(config, *names, purpose="client")


def pair(config: ServeConfig, certificate: str, key: str) -> str | None:
    """The setting of a certificate, which must come with that of its key. Raises ConfigError."""
    given = [getattr(config, name) for name in (certificate, key)]
    if (given[0] is None) != (given[1] is None):
        there, absent = (certificate, key) if given[1] is None else (key, certificate)
        raise ConfigError(f"{there} is set and {absent} is not; a certificate and its key are set together")
    return given[0]  # type: ignore[no-any-return]  # a setting's value, text or None


def rotated(
    config: ServeConfig, certificate: str, key: str, authorities: str, *, purpose: Purpose
) -> Rotated[Identity]:
    """The identity in the files of three settings, of which the pair or the third may be absent."""
    files = {name: NamedFile(name, path) for name in (certificate, key, authorities) if (path := getattr(config, name))}

    def parse(contents: tuple[bytes, ...]) -> Identity:
        content: dict[str, Any] = dict(zip(files, contents, strict=True))
        named = {name: str(file) for name, file in files.items()}
        own = roots = None
        if certificate in content:
            make = partial(certificate_of, named=named[certificate], key_named=named[key])
            own = make(content[certificate], content[key], purpose)
        if authorities in content:
            roots = authorities_of(content[authorities], named=named[authorities])
        ends = ((certificate, own), (authorities, roots))
        return Identity(own, roots, tuple((name, one.expires) for name, one in ends if one is not None))

    return Rotated(tuple(files.values()), parse)
