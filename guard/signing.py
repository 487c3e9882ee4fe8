"""Keys that sign bundles, and the keys that are trusted: `guard sign`, and what a guard does before it serves one.

Rule 1: with trusted keys a bundle is used only with a signature of one of them, unless the operator says that it may
        have none. Otherwise to take the signature away would be the way around it.
Rule 2: `cryptography` is imported where there is a key, and nowhere else: it is in the extra [sign].
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.bundle import SIGNATURE, Bundle
from guard.errors import BundleError, ConfigError
from guard.signature import authenticated, check_statement, read_envelope, signature_file, statement_of

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # P-256, and the two that the specification has beside it
SHORT_ID_CHARACTERS = 16


@dataclass(frozen=True)
class TrustedKey:
    """A public key whose signatures are believed, and the file that it came from."""

    file: str
    id: str  # SHA-256 (hex) of its PEM
    key: Any  # EllipticCurvePublicKey


@dataclass(frozen=True)
class Trust:
    """The keys whose signatures are believed, and whether a bundle must have one."""

    keys: tuple[TrustedKey, ...] = ()
    required: bool = False

    @staticmethod
    def of(files: Sequence[str | Path], *, required: bool | None = None) -> Trust:
        """Read the public keys; a signature is required where there are any, unless `required` is False.

        Raises:
            ConfigError: a file holds no key that can be used, or a signature is required and there is no key.
        """
        if required and not files:
            raise ConfigError("require_signature = true needs trusted_keys: the PEM files of the public keys to trust")
        return Trust(tuple(map(trusted_key, files)), bool(files) if required is None else required)


def open_trusted(path: str | Path, trust: Trust) -> tuple[Bundle, TrustedKey | None]:
    """Open a bundle, every file verified, and its signature where keys are trusted.

    This is the way in which serving opens a bundle, at the start and at each reload.

    Returns:
        The bundle, and the key that signed it; None where no key is trusted, or it is not signed and need not be.

    Raises:
        BundleError: as `Bundle.open`; or it is not signed and must be, is signed by another key, or was changed since.
    """
    bundle = Bundle.open(path)
    return bundle, verify(bundle, trust)


def verify(bundle: Bundle, trust: Trust) -> TrustedKey | None:
    """Verify the signature of an opened bundle, and return the key that signed it; see `open_trusted`."""
    if not trust.keys:
        return None
    envelope = read_envelope(bundle.path)
    file = bundle.path / SIGNATURE
    if envelope is None:
        if trust.required:
            raise BundleError(
                f"{bundle.path} is not signed, and only bundles signed by a key of trusted_keys are used; sign it "
                f"(guard sign {bundle.path} --key KEY.pem), or set require_signature = false"
            )
        return None
    likely = [one for one in trust.keys if envelope.key_hint in ("", one.id)]
    signer = next((one for one in likely if is_signed(envelope.payload, envelope.signature, one.key)), None)
    if signer is None:
        if likely and envelope.key_hint:
            raise BundleError(
                f"{file} was altered: it names the key {short(envelope.key_hint)} ({likely[0].file}), which did not "
                f"sign it so; sign the bundle again (guard sign {bundle.path} --key KEY.pem)"
            )
        named = f"by the key {short(envelope.key_hint)}" if envelope.key_hint else "by a key that it does not name"
        trusted = ", ".join(f"{short(one.id)} ({one.file})" for one in trust.keys)
        raise BundleError(
            f"{bundle.path} is signed {named}, which is not trusted; trusted are {trusted}; have it signed by one of "
            "them, or add the signer's public key to trusted_keys"
        )
    check_statement(envelope.payload, bundle)
    return signer


def sign(bundle: Bundle, key_file: Path, *, ask: Callable[[], str], replace: bool = False) -> tuple[Path, str]:
    """Sign a bundle with a private key, and return the signature's file and the key's id.

    `ask` is called for the password of an encrypted key.

    Raises:
        ConfigError: the file holds no key that can sign.
        BundleError: the bundle is signed already and `replace` is false, or its directory cannot be written to.
    """
    file = bundle.path / SIGNATURE
    if file.exists() and not replace:
        raise BundleError(f"{file} exists, the bundle is signed already; --replace signs it anew")
    key = private_key(key_file, ask)
    payload = statement_of(bundle)
    hint = key_id(key.public_key())
    content = signature_file(payload, key.sign(authenticated(payload), scheme(key.public_key())), hint)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{SIGNATURE}.", dir=bundle.path)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(content)
            Path(partial).chmod(0o644)
            Path(partial).replace(file)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BundleError(f"{file} cannot be written: {error.strerror}; sign a copy of the bundle") from error
    return file, hint


def trusted_key(file: str | Path) -> TrustedKey:
    """Read a public key from a PEM file. Raises ConfigError."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = key_content(file)
    try:
        key = load_pem_public_key(content)
    except ValueError as error:
        hint = "; this is a private key, which must not lie here" if b"PRIVATE KEY-----" in content else ""
        raise ConfigError(
            f"{file} holds no public key{hint}; wanted PEM, as openssl pkey -in KEY.pem -pubout prints it"
        ) from error
    return TrustedKey(str(file), key_id(elliptic(key, file)), key)


def private_key(file: Path, ask: Callable[[], str]) -> Any:
    """Read a private key from a PEM file. Raises ConfigError."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = key_content(file)
    wanted = "wanted PEM, as openssl ecparam -name prime256v1 -genkey -noout writes it"
    try:
        password = ask().encode() if b"ENCRYPTED" in content else None
        key: Any = load_pem_private_key(content, password)
    except (ValueError, TypeError) as error:
        wrong = "; or its password is another" if b"ENCRYPTED" in content else ""
        raise ConfigError(f"{file} holds no private key that can be read{wrong}; {wanted}") from error
    elliptic(key.public_key(), file)
    return key


def key_content(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; wanted the PEM file of a key") from error


def elliptic(key: Any, file: str | Path) -> Any:
    """Return `key` if it is one for ECDSA on a curve of `CURVES`. Raises ConfigError."""
    curve = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if curve not in CURVES:
        raise ConfigError(f"{file} holds a key of kind {curve}; wanted one for ECDSA on P-256 (prime256v1)")
    return key


def key_id(key: Any) -> str:
    """SHA-256 (hex) of a public key's PEM: the name that a signature calls its key by."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def scheme(key: Any) -> Any:
    """The signature scheme of a key: ECDSA with the hash that belongs to its curve."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA({256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size])


def is_signed(payload: bytes, signature: bytes, key: Any) -> bool:
    """Whether `signature` is the key's, over the payload."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, authenticated(payload), scheme(key))
    except InvalidSignature:
        return False
    return True


def short(key_hint: str) -> str:
    """The first characters of a key's id, as they are shown; what a file calls a key may be anything."""
    return "".join(c for c in key_hint[:SHORT_ID_CHARACTERS] if c.isprintable())
