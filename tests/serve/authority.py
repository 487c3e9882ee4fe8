"""Certificate authorities for tests, and the files of certificates as a mount or an editor replaces them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, as PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write NAME.crt and NAME.key, and return their paths."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.chain)
        key.write_bytes(self.key)
        return str(certificate), str(key)


class Authority:
    """A certificate authority."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.pem = self.ca.cert_pem.bytes()

    def write(self, folder: Path, name: str) -> str:
        (folder / name).write_bytes(self.pem)
        return str(folder / name)

    def issue(
        self,
        *names: x509.GeneralName,
        common_name: str | None = "localhost",
        days: float = 30,
        begins_days: float = -365,
        uses: tuple[x509.ObjectIdentifier, ...] = (),
    ) -> Pair:
        """Issue a certificate for `localhost`, or for these names, that begins and ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.load_pem_x509_certificate(self.pem)
        subject = [] if common_name is None else [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins_days * DAY)
            .not_valid_after(now + days * DAY)
        )
        if alternatives := names or ((x509.DNSName("localhost"),) if common_name == "localhost" else ()):
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        signer = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        certificate = builder.sign(signer, hashes.SHA256())
        return Pair(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def authority_pem(*, days: float) -> bytes:
    """The certificate of an authority that ends in so many days, or ended before, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"authority of {days} days")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 365 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def client_credentials(authority: Authority, own: Pair | None = None) -> grpc.ChannelCredentials:
    """The credentials of a client that trusts an authority, and shows a certificate if it has one."""
    if own is None:
        return grpc.ssl_channel_credentials(authority.pem)
    return grpc.ssl_channel_credentials(authority.pem, own.key, own.chain)


def server_credentials(own: Pair, clients: Authority | None = None) -> grpc.ServerCredentials:
    """The credentials of a server, which asks for certificates of `clients` where that is given."""
    if clients is None:
        return grpc.ssl_server_credentials([(own.key, own.chain)])
    return grpc.ssl_server_credentials([(own.key, own.chain)], clients.pem, require_client_auth=True)
