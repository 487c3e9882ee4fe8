"""Certificates and keys from PEM files: what gRPC is given was tried in a handshake first, and its end is known.

How it works. gRPC takes any bytes, and its clients meet the fault. So a certificate and its key shake hands with each
other in memory, in the role that they are for, before they are used: PEM, key, purpose and chain are then known to fit.
The standard library does it, since serving has no other reader of certificates. Dates are left out of the trial: a
certificate that is over is told, and is for the other end to refuse.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guard.errors import ConfigError

Purpose = Literal["server", "client"]

SYSTEM_ROOTS = (  # beside what OpenSSL names itself
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
NO_CHECK_TIME_CODE = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python does not name
MAX_HANDSHAKE_ROUNDS = 10
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@dataclass(frozen=True)
class Certificate:
    """A certificate with those that lead to its authority, and its key, both as PEM."""

    chain: bytes
    key: bytes
    expires: float  # seconds since 1970


@dataclass(frozen=True)
class Authorities:
    """The certificates that others' must lead to, as PEM."""

    pem: bytes
    expires: float  # seconds since 1970, of the last to end: until then a certificate can lead to one that is valid


def certificate_of(chain: bytes, key: bytes, purpose: Purpose, *, named: str, key_named: str) -> Certificate:
    """Try a certificate with its key; `named` and `key_named` are the settings with their files, for errors.

    Raises:
        ConfigError: they cannot be read, do not belong together, or are not for this purpose.
    """
    try:
        ends = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with as_file(chain) as chain_file, as_file(key) as key_file:
            for end in ends:
                end.load_cert_chain(chain_file, key_file, password=lambda: b"-")  # otherwise it asks on the terminal
        found = tried(*ends, first_certificate(chain), purpose)
    except ssl.SSLError as error:
        raise ConfigError(pair_fault(chain, key, error, purpose, named=named, key_named=key_named)) from error
    except ValueError as error:
        raise ConfigError(f"{named} holds no certificate that can be read ({error}); wanted a PEM file") from error
    return Certificate(chain, key, ssl.cert_time_to_seconds(found["notAfter"]))


def pair_fault(chain: bytes, key: bytes, error: ssl.SSLError, purpose: Purpose, *, named: str, key_named: str) -> str:
    """The sentence that says why a certificate and a key cannot be used."""
    if BEGIN not in chain:
        return f"{named} holds no certificate; wanted a PEM file that begins with {BEGIN.decode()}"
    if b"PRIVATE KEY-----" not in key:
        return f"{key_named} holds no private key; wanted a PEM file of one"
    if b"ENCRYPTED" in key:
        return f"{key_named} is encrypted, and there is nobody to type its password; write it without one"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key_named} does not belong to {named}; wanted the key that the certificate was made for"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{named} is not for a {purpose} ({error.verify_message}); wanted one that may be used as such"
    return f"{named} and {key_named} cannot be used: {error.reason or error}; wanted PEM files that belong together"


def authorities_of(pem: bytes, *, named: str) -> Authorities:
    """Read certificates of authorities; `named` is the setting with its file. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem_text(pem))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{named} holds no certificates that can be read; wanted a PEM file of certificates"
        ) from error
    ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
    return Authorities(pem, max(ends, default=float("inf")))


def pem_text(pem: bytes) -> str:
    """A PEM file as the ASCII that the standard library takes; comments between its blocks may be in any encoding."""
    return pem.decode("latin-1").encode("ascii", "replace").decode("ascii")


def system_roots(files: Sequence[str | None] | None = None) -> bytes | None:
    """The certificates of the first file that is there; the system's files unless others are given."""
    for file in (ssl.get_default_verify_paths().cafile, *SYSTEM_ROOTS) if files is None else files:
        if file is not None and Path(file).is_file():
            return Path(file).read_bytes()
    return None


def first_certificate(chain: bytes) -> str:
    """The first certificate of a PEM file, as text. Raises ValueError."""
    begin, end = chain.find(BEGIN), chain.find(END)
    if begin < 0 or end < begin:
        raise ValueError("no whole certificate")
    return chain[begin : end + len(END)].decode("ascii") + "\n"


def tried(server: ssl.SSLContext, client: ssl.SSLContext, leaf: str, purpose: Purpose) -> dict[str, Any]:
    """Shake hands in memory, and return what the other end learns of the certificate. Raises ssl.SSLError."""
    judge = client if purpose == "server" else server
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.load_verify_locations(cadata=leaf)
    judge.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME_CODE
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    waiting = list(ends)
    for _ in range(MAX_HANDSHAKE_ROUNDS):
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            break
    found = ends[0 if purpose == "server" else 1].getpeercert()
    if waiting or not found:
        raise ssl.SSLError("the handshake did not end")
    return found


@contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """A path to content that is in memory alone, for a library that takes nothing but paths."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
