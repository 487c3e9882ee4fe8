"""The signature of a bundle, as OpenSSF model signing writes it: `model.sig` beside the manifest.

How it works. The file is a sigstore bundle: a DSSE envelope around an in-toto statement, which lists each file of the
model with its SHA-256, signed with an ECDSA key. The list holds `manifest.json`, and that vouches for every other file,
so what was verified when the bundle was opened is held against the list, and nothing is read twice. `model_signing
verify key` accepts what is signed here, and here is accepted what its `sign key` has signed.

    {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
     "verificationMaterial": {"publicKey": {"hint": SHA-256 of the key's PEM}, "tlogEntries": []},
     "dsseEnvelope": {"payload": B64, "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": B64}]}}

Rule 1: nothing of the statement is believed before its signature was verified by a key that the operator named.
Rule 2: what is signed and differs or is missing is an error; what lies beside the bundle unsigned is none.

Source: OpenSSF model signing specification 1.0. We left out: certificates, Sigstore's identities, shards, other hashes
than SHA-256, and the statement of versions before 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.bundle import MANIFEST, SIGNATURE, Bundle, file_digest
from guard.errors import BundleError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")  # as the specification's own tool does
MAX_SIGNATURE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Envelope:
    """A signature file as it was read: nothing in it is verified yet."""

    payload: bytes
    signature: bytes
    key_hint: str  # SHA-256 (hex) of the signing key's PEM, or nothing


def statement_of(bundle: Bundle) -> bytes:
    """The statement to be signed: every file of a bundle with its SHA-256, as JSON."""
    digests = {**bundle.files, MANIFEST: bundle.digest}
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in sorted(digests)]
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(IGNORED),
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": bundle.path.resolve().name, "digest": {"sha256": root_digest(resources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"serialization": serialization, "resources": resources},
    }
    return json.dumps(statement).encode()


def root_digest(resources: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) over the digests of the resources, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()


def authenticated(payload: bytes) -> bytes:
    """The bytes that DSSE signs for a payload: its type and both lengths are part of them."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def signature_file(payload: bytes, signature: bytes, key_hint: str) -> str:
    """Write a signature file, as JSON."""
    material = {"publicKey": {"hint": key_hint}, "tlogEntries": []}
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    return json.dumps({"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}) + "\n"


def read_envelope(bundle: Path) -> Envelope | None:
    """Read the signature file of a bundle; None where there is none.

    Raises:
        BundleError: it cannot be read, or is of another kind.
    """
    file = bundle / SIGNATURE
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_SIGNATURE_BYTES + 1)
        if len(text) > MAX_SIGNATURE_BYTES:
            raise ValueError(f"more than {MAX_SIGNATURE_BYTES} bytes")
        raw = json.loads(text)
        if raw["mediaType"] != MEDIA_TYPE:
            raise ValueError(f"mediaType {raw['mediaType']!r}, wanted {MEDIA_TYPE}")
        material, envelope = raw["verificationMaterial"], raw["dsseEnvelope"]
        if "publicKey" not in material:
            raise ValueError(f"made by {', '.join(map(str, material))}, wanted a publicKey: sign with a key")
        if envelope["payloadType"] != PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
            raise ValueError(f"wanted one signature of {PAYLOAD_TYPE}")
        return Envelope(
            payload=base64.b64decode(envelope["payload"], validate=True),
            signature=base64.b64decode(envelope["signatures"][0]["sig"], validate=True),
            key_hint=str(material["publicKey"].get("hint") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BundleError(
            f"{file} is no signature that can be read ({type(error).__name__}: {error}); sign the bundle again "
            f"(guard sign {bundle} --key KEY.pem)"
        ) from error


def check_statement(payload: bytes, bundle: Bundle) -> None:
    """Hold a statement whose signature was verified against a bundle.

    Raises:
        BundleError: it is of another kind, leaves a file of the bundle out, or a file differs or is missing.
    """
    signed = signed_files(payload, bundle.path / SIGNATURE)
    for name, found in {MANIFEST: bundle.digest, **bundle.files}.items():
        if name not in signed:
            raise BundleError(f"{bundle.path / name} is not signed, though the bundle has it; {sign_again(bundle)}")
        compare(bundle, name, signed[name], found)
    for name in sorted(signed.keys() - bundle.files.keys() - {MANIFEST}):  # signed beside the bundle
        file = bundle.path / name
        if not file.is_file():
            raise BundleError(f"{file} is signed and missing; restore it, or sign the bundle again")
        compare(bundle, name, signed[name], file_digest(file))


def compare(bundle: Bundle, name: str, signed: str, found: str) -> None:
    if signed != found:
        raise BundleError(
            f"{bundle.path / name} was changed after the bundle was signed: SHA-256 is {found[:12]}…, the signature "
            f"says {signed[:12]}…; restore the bundle that was signed, or {sign_again(bundle)}"
        )


def sign_again(bundle: Bundle) -> str:
    return f"sign this one: guard sign {bundle.path} --key KEY.pem"


def signed_files(payload: bytes, file: Path) -> dict[str, str]:
    """The files that a statement lists, each with its SHA-256 (hex). Raises BundleError."""
    try:
        statement = json.loads(payload)
        if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"wanted a statement of {PREDICATE_TYPE}, found {statement['predicateType']}")
        ((subject,), predicate) = statement["subject"], statement["predicate"]
        kind, resources = predicate["serialization"], predicate["resources"]
        if (kind["method"], kind["hash_type"]) != ("files", "sha256"):
            raise ValueError(f"wanted whole files by sha256, found {kind['method']} by {kind['hash_type']}")
        if root_digest(resources) != subject["digest"]["sha256"]:
            raise ValueError("the digest of the whole is not that of its files")
        files = {str(one["name"]): bytes.fromhex(one["digest"]).hex() for one in resources}
        if len(files) != len(resources) or any(one["algorithm"] != "sha256" for one in resources):
            raise ValueError("a file is listed twice, or not by sha256")
        if outside := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise ValueError(f"{outside[0]!r} lies outside of the bundle")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{file} signs something else than a bundle's files ({type(error).__name__}: {error}); sign the bundle "
            "again, by files and sha256"
        ) from error
    return files
